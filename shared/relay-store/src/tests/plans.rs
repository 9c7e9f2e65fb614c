use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use super::Ledger;

/// Thirty days, some hundred thousand rows.
async fn fill(pool: &PgPool) {
    sqlx::raw_sql(
        "select relay_make_partitions((now() at time zone 'utc')::date + d) from generate_series(-30, 2) as d;
        insert into tenants (id) select 't' || n from generate_series(1, 200) n;
        insert into endpoints (id, tenant, name, url, max_retries, retry_backoff_base, retry_max_delay_seconds, timeout_seconds,
            circuit_failure_threshold, circuit_window_seconds, circuit_recovery_seconds, secret, version)
            select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'default', 'e', 'u', 5, 2, 3600, 30, 5, 60, 300, 's', 1
            from generate_series(1, 500) n;
        create temporary table ids as
            select (left(replace(relay_day_floor((now() at time zone 'utc')::date + d)::text, '-', ''), 12) || '7' || right(md5(d || '-' || n), 19))::uuid as id,
                ('00000000-0000-7000-8000-' || lpad((n % 500 + 1)::text, 12, '0'))::uuid as endpoint_id, n
            from generate_series(-29, 0) d, generate_series(1, 3000) n;
        insert into events (id, tenant, type, accepted_at, fanout, payload) select id, 'default', 'a.b', now(), 1, '{}' from ids;
        insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base) select id, endpoint_id, 'default', 1, 1, 1, 0 from ids where n % 10 > 0;
        insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim) select id, endpoint_id, 'default', now() + n * interval '1 second', n % 2 = 0, 1 from ids where n % 10 = 0;
        insert into attempts (event_id, endpoint_id, id, number, attempted_at, success, total_us, request_headers, response_headers, response_excerpt, pod)
            select id, endpoint_id, id, 1, now(), true, 1, '', '', '', 'p' from ids;
        insert into dead_letters (event_id, endpoint_id, id, tenant, reason) select id, endpoint_id, id, 'default', 'exhausted' from ids where n % 20 = 0;
        analyze;",
    )
    .execute(pool)
    .await
    .unwrap();
}

/// The generic plan: what a connection uses after a few runs.
async fn generic_plan(sql: &str, connection: &mut PgConnection) -> Vec<String> {
    let parameters = (1..).take_while(|n| sql.contains(&format!("${n}"))).count();
    let nulls = vec!["null"; parameters].join(", ");
    generic_plan_for(sql, &nulls, connection).await
}

/// With these parameters: where their values decide which partitions are opened.
async fn generic_plan_for(sql: &str, parameters: &str, connection: &mut PgConnection) -> Vec<String> {
    let call = if parameters.is_empty() { String::new() } else { format!("({parameters})") };
    sqlx::raw_sql(AssertSqlSafe(format!(
        "deallocate all; set plan_cache_mode = force_generic_plan; prepare p as {sql}"
    )))
    .execute(&mut *connection)
    .await
    .unwrap();
    let plan: Vec<String> = sqlx::raw_sql(AssertSqlSafe(format!("explain (costs off) execute p{call}")))
        .fetch_all(&mut *connection)
        .await
        .unwrap()
        .iter()
        .map(|row| sqlx::Row::get(row, 0))
        .collect();
    sqlx::raw_sql("reset plan_cache_mode").execute(&mut *connection).await.unwrap();
    plan
}

/// What isn't folded yet is a queue of some seconds: it alone may be read whole.
fn assert_no_scan(what: &str, plan: &[String]) {
    let scans = plan.iter().any(|l| l.contains("Seq Scan") && !l.contains("Seq Scan on stats_batches"));
    assert!(!scans, "{what} scans a table:\n{}", plan.join("\n"));
}

#[sqlx::test(migrations = "../../migrations")]
async fn hot_statements_find_their_rows_by_index_in_their_day(pool: PgPool) {
    fill(&pool).await;
    let ledger = Ledger::new(pool).await;
    let mut dispatch = ledger.dispatch.hold().await.unwrap();
    let plan = generic_plan(include_str!("../sql/dispatch.sql"), dispatch.conn()).await;
    assert_no_scan("dispatch", &plan);
    let mut keyed = ledger.keyed.hold().await.unwrap();
    for (what, sql) in [
        ("record", include_str!("../sql/record.sql")),
        ("take", include_str!("../sql/take.sql")),
        ("due, waiting", include_str!("../sql/due_waiting.sql")),
        ("due, lapsed", include_str!("../sql/due_lapsed.sql")),
        ("claim", include_str!("../sql/claim.sql")),
        ("close", include_str!("../sql/close.sql")),
        ("replay", include_str!("../sql/replay.sql")),
        ("summaries", include_str!("../sql/summaries.sql")),
        ("letters", include_str!("../sql/letters.sql")),
        ("letters_oldest", include_str!("../sql/letters_oldest.sql")),
        ("letters_count", include_str!("../sql/letters_count.sql")),
        ("letter_groups", include_str!("../sql/letter_groups.sql")),
        ("backlog", include_str!("../sql/backlog.sql")),
        ("series", include_str!("../sql/series.sql")),
    ] {
        let plan = generic_plan(sql, keyed.conn()).await;
        assert_no_scan(what, &plan);
        assert!(
            !plan.iter().any(|l| l.contains("Hash Join") || l.contains("Merge Join")),
            "{what}:\n{}",
            plan.join("\n")
        );
    }

    // No day's partition is opened by a statement that doesn't need it: what costs per partition and statement
    // is what a batch of thirty can't afford.
    let by_hash = [("dispatch", include_str!("../sql/dispatch.sql"))];
    let by_key = [("record", include_str!("../sql/record.sql")), ("take", include_str!("../sql/take.sql"))];
    for (statements, connection) in [(&by_hash[..], dispatch.conn()), (&by_key[..], keyed.conn())] {
        for (what, sql) in statements {
            let plan = generic_plan(sql, &mut *connection).await;
            assert!(!plan.iter().any(|l| l.contains("_202") || l.contains("_203")), "{what}:\n{}", plan.join("\n"));
        }
    }

    // Statistics look at nothing that grows with the events, but the head of the queue.
    let mut queries = ledger.queries.hold().await.unwrap();
    let plan = generic_plan(include_str!("../sql/series.sql"), queries.conn()).await.join("\n");
    assert!(["events", "attempts", "deliveries", "dead_letters"].iter().all(|t| !plan.contains(t)), "{plan}");
    queries.give_back();
    let plan = generic_plan(include_str!("../sql/backlog.sql"), keyed.conn()).await.join("\n");
    assert_eq!(
        plan.matches("using open_deliveries_due").count(),
        plan.matches("open_deliveries").count() / 2,
        "{plan}"
    );
    assert!(plan.matches("Limit").count() >= 3 && !plan.contains("_202"), "{plan}");
    dispatch.give_back();
    keyed.give_back();
}

/// Each part of a list is read by an index in the list's own order, so the limit ends it: nothing is sorted, nothing is
/// collected first.
#[sqlx::test(migrations = "../../migrations")]
async fn lists_are_read_in_their_order_by_index(pool: PgPool) {
    fill(&pool).await;
    let ledger = Ledger::new(pool).await;
    let mut keyed = ledger.keyed.hold().await.unwrap();
    let (all_ids, all_times) = (
        "'ffffffff-ffff-ffff-ffff-ffffffffffff', '00000000-0000-0000-0000-000000000000'",
        "'1970-01-01', '9999-12-31'",
    );
    let endpoint = "'00000000-0000-7000-8000-000000000001'";
    let by_time = |event_type: &str| {
        format!("'default', {all_times}, '00000000-0000-0000-0000-000000000000', 21, {event_type}, null, 21, 0")
    };
    for (what, sql, parameters, index) in [
        ("events", include_str!("../sql/events_by_time.sql"), by_time("null"), "tenant_accepted_at_id_idx"),
        (
            "events of a type",
            include_str!("../sql/events_of_type_by_time.sql"),
            by_time("'a.b'"),
            "tenant_type_accepted_at_id_idx",
        ),
        (
            "open deliveries",
            include_str!("../sql/open_by_event.sql"),
            format!("{all_ids}, 21, 'default', null, null, 21"),
            "open_deliveries_pkey",
        ),
        (
            "dead letters",
            include_str!("../sql/letters_by_event.sql"),
            format!("{all_ids}, 21, 'default', null, 21"),
            "dead_letters_pkey",
        ),
        (
            "closed deliveries",
            include_str!("../sql/closed_by_event.sql"),
            format!("{all_ids}, 21, {endpoint}, null, 21"),
            "endpoint_id_event_id_idx",
        ),
        (
            "attempts of an endpoint",
            include_str!("../sql/attempts_of_endpoint.sql"),
            format!("{endpoint}, 'ffffffff-ffff-ffff-ffff-ffffffffffff', 0, 21"),
            "endpoint_id_id_idx",
        ),
    ] {
        let plan = generic_plan_for(sql, &parameters, keyed.conn()).await;
        assert_no_scan(what, &plan);
        let text = plan.join("\n");
        let is_collected =
            plan.iter().any(|l| ["Sort", "Incremental Sort"].contains(&l.trim_start_matches([' ', '-', '>'])));
        assert!(text.contains(index) && !is_collected && !text.contains("Bitmap"), "{what}:\n{text}");
    }
    keyed.give_back();
}

/// The queue is empty most of the time, also when its statistics are taken: then any index, and reading all of the table,
/// looks as good as a look-up.
#[sqlx::test(migrations = "../../migrations")]
async fn plans_made_while_the_queue_is_empty_stay_right(pool: PgPool) {
    sqlx::raw_sql("vacuum analyze open_deliveries").execute(&pool).await.unwrap();
    let ledger = Ledger::new(pool).await;
    let mut keyed = ledger.keyed.hold().await.unwrap();
    for (what, sql, due, waiting) in [
        ("record", include_str!("../sql/record.sql"), 0, 0),
        ("take", include_str!("../sql/take.sql"), 0, 0),
        ("close", include_str!("../sql/close.sql"), 0, 0),
        ("resend", include_str!("../sql/resend.sql"), 0, 0),
        ("claim", include_str!("../sql/claim.sql"), 1, 1),
        ("due, waiting", include_str!("../sql/due_waiting.sql"), 0, 2),
        ("due, lapsed", include_str!("../sql/due_lapsed.sql"), 2, 0),
        ("replay", include_str!("../sql/replay.sql"), 1, 0),
        ("backlog", include_str!("../sql/backlog.sql"), 2, 0),
    ] {
        let plan = generic_plan(sql, keyed.conn()).await;
        for (line, next) in plan.iter().zip(&plan[1..]) {
            let is_look_up = next.trim_start().starts_with("Index Cond: ((event_id") || next.contains("(event_id = $");
            assert!(
                !line.contains("open_deliveries_pkey") || is_look_up,
                "{what} reads all that is open for each row of its batch:\n{}",
                plan.join("\n")
            );
        }
        let plan = plan.join("\n");
        let used = |index: &str| plan.matches(&format!("using {index}")).count();
        assert_eq!((used("open_deliveries_due"), used("open_deliveries_waiting")), (due, waiting), "{what}:\n{plan}");
    }
    keyed.give_back();
}
