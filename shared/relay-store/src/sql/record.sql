with i as materialized (
    -- kind: 1 delivered, 2 to be retried, 3 given up, 4 handed back
    select x.* from unnest($1::uuid[], $2::uuid[], $3::int[], $4::int[], $5::smallint[], $6::bigint[], $7::text[], $8::int[], $9::smallint[],
            $10::int[], $11::bytea[], $12::uuid[], $13::boolean[], $30::text[]) with ordinality
        as x (event_id, endpoint_id, claim, attempts, kind, delay_us, reason, after, hand_back, last_status, last_error, letter_id, deactivate, tenant, n)
),
a as (
    insert into attempts (event_id, endpoint_id, id, number, attempted_at, success, http_status, error_class, error, total_us, connect_us,
        first_byte_us, request_headers, response_headers, response_excerpt, pod)
    select x.event_id, x.endpoint_id, x.id, x.number, x.attempted_at, x.success, x.http_status, x.error_class, x.error, x.total_us, x.connect_us,
        x.first_byte_us, x.request_headers, x.response_headers, x.response_excerpt, $29
    from unnest($14::uuid[], $15::uuid[], $16::uuid[], $17::int[], $18::timestamptz[], $19::boolean[], $20::int[], $21::text[], $22::bytea[],
            $23::int[], $24::int[], $25::int[], $26::bytea[], $27::bytea[], $28::bytea[])
        as x (event_id, endpoint_id, id, number, attempted_at, success, http_status, error_class, error, total_us, connect_us, first_byte_us,
            request_headers, response_headers, response_excerpt)
    on conflict do nothing
    returning endpoint_id, success, total_us, http_status
),
-- A 2xx counts whatever its claim, if its number is above the row's base; a final failure only for the row it was sent for.
-- `any(array[…])` here and in the other statements over batches: as a plain join the planner may read all of the table for each
-- row of the batch, which looks good to it where the table was empty when it was last vacuumed.
gone as (
    delete from open_deliveries o using i
    where o.event_id = any(array[i.event_id]) and o.endpoint_id = i.endpoint_id
        and case i.kind when 1 then i.attempts + 1 > o.base when 3 then o.claim = i.claim and o.attempts = i.attempts else false end
    returning i.n, i.kind, o.event_id, o.endpoint_id, o.tenant, o.claim, o.base, o.lane, o.opened_at, o.attempts > o.base as was_retrying,
        case i.kind when 1 then greatest(o.attempts, i.after) else i.after end as attempts,
        i.reason, i.last_status, i.last_error, i.letter_id, i.deactivate
),
closed as (
    insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base, last_status, last_error)
    select g.event_id, g.endpoint_id, g.tenant, case g.kind when 1 then 1 else 2 end, g.claim, g.attempts, g.base, g.last_status, g.last_error
    from gone g
    on conflict do nothing
),
kept as (
    update open_deliveries o
    set attempts = i.after, due_at = now() + i.delay_us * interval '1 microsecond', leased = false, hand_back = i.hand_back,
        last_status = case i.kind when 2 then i.last_status else o.last_status end,
        last_error = case i.kind when 2 then i.last_error else o.last_error end
    from i
    where o.event_id = any(array[i.event_id]) and o.endpoint_id = i.endpoint_id and i.kind in (2, 4) and o.claim = i.claim and o.attempts = i.attempts
    returning i.n, i.kind, o.tenant, o.endpoint_id, i.attempts = o.base as was_first
),
-- What a 2xx finds that isn't open: the status it had, negative where it is left as it is.
found as materialized (
    select i.n, i.endpoint_id, i.tenant, relay_late_success(i.event_id, i.endpoint_id, i.after, i.last_status) as was
    from i where i.kind = 1 and i.n not in (select g.n from gone g)
),
late as materialized (
    select f.* from found f where f.was > 0
),
letters as (
    insert into dead_letters (event_id, endpoint_id, id, tenant, event_type, reason, error, last_status, attempts)
    select g.event_id, g.endpoint_id, g.letter_id, g.tenant, relay_event_type(g.event_id), g.reason, g.last_error,
        g.last_status, g.attempts
    from gone g where g.kind = 3
    order by g.event_id, g.endpoint_id
    on conflict (event_id, endpoint_id) do update
    set state = 'open', reason = excluded.reason, error = excluded.error, last_status = excluded.last_status, attempts = excluded.attempts,
        dead_lettered_at = excluded.dead_lettered_at
),
-- Only a replayed life (lane 2) can have a letter to resolve.
resolved as (
    update dead_letters d
    set state = 'resolved'
    from gone g
    where d.id = g.letter_id and g.kind = 1 and g.lane = 2
),
raised as (
    update tenants t
    set directory_version = t.directory_version + 1
    from (
        select distinct g.tenant from gone g
        where g.deactivate and (select e.is_active from endpoints e where e.id = g.endpoint_id)
        order by 1
    ) x
    where t.id = x.tenant
    returning t.id, t.directory_version
),
deactivated as (
    update endpoints e
    set is_active = false, updated_at = now(), version = r.directory_version
    from raised r join (select distinct g.tenant, g.endpoint_id from gone g where g.deactivate) x on x.tenant = r.id
    where e.id = x.endpoint_id and e.tenant = r.id and e.is_active
),
statistics as (
    insert into stats_batches (deltas)
    select array_agg(row(s.tenant, s.endpoint_id, 0, 0, 0, s.delivered, s.dead, s.discarded, s.retrying, s.ok, s.failed, s.latency, s.buckets)::relay_stats)
    from (
        select coalesce(max(x.tenant), (select p.tenant from endpoints p where p.id = x.endpoint_id), '_relay') as tenant, x.endpoint_id,
            sum(x.delivered) as delivered, sum(x.dead) as dead, sum(x.discarded) as discarded, sum(x.retrying) as retrying,
            sum(x.ok) as ok, sum(x.failed) as failed, sum(x.latency) as latency,
            coalesce(array_agg(x.bucket) filter (where x.bucket is not null), '{}') as buckets
        from (
            select null::text as tenant, a.endpoint_id, 0 as delivered, 0 as dead, 0 as discarded, 0 as retrying, a.success::int as ok,
                (not a.success)::int as failed, case when a.success then a.total_us else 0 end as latency,
                case when a.http_status is not null then relay_bucket(a.total_us) end as bucket from a
            union all
            select g.tenant, g.endpoint_id, (g.kind = 1)::int, (g.kind = 3)::int, 0, -(g.was_retrying::int), 0, 0, 0,
                case when g.kind = 1 then (512 + relay_bucket((date_part('epoch', now() - g.opened_at) * 1000000)::bigint))::smallint end from gone g
            union all
            select k.tenant, k.endpoint_id, 0, 0, 0, 1, 0, 0, 0, null from kept k where k.kind = 2 and k.was_first
            union all
            select l.tenant, l.endpoint_id, 1, -((l.was = 2)::int), -((l.was = 3)::int), 0, 0, 0, 0, null from late l
        ) x
        group by x.endpoint_id
    ) s
    having count(*) > 0
)
select array(select g.n from gone g union all select k.n from kept k union all select l.n from late l) as "applied!",
    array(select f.n from found f where f.was = -1) as "delivered_before!",
    array(select f.n from found f where f.was < -1) as "refused!",
    array(select r.id from raised r) as "deactivated!"
