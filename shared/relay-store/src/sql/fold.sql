with taken as (
    -- Two folders at once take different rows.
    delete from stats_delta d
    where d.ctid in (select p.ctid from stats_delta p limit $1 for update skip locked)
    returning d.*
),
-- Each delta counts for its endpoint and for its tenant; those of the nil endpoint only for the tenant.
spread as materialized (
    select d.tenant, d.endpoint_id, date_trunc('minute', d.at) as minute, d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum from taken d
    union all
    select d.tenant, '00000000-0000-0000-0000-000000000000'::uuid, date_trunc('minute', d.at), d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum from taken d
    where d.endpoint_id <> '00000000-0000-0000-0000-000000000000'
),
minutes as (
    insert into stats_minutes as t (tenant, endpoint_id, minute, events, unmatched, opened, delivered, dead_lettered, discarded, retrying, attempts_ok, attempts_failed, latency_us_sum)
    select x.tenant, x.endpoint_id, x.minute, sum(x.events)::bigint as events, sum(x.unmatched)::bigint as unmatched, sum(x.opened)::bigint as opened, sum(x.delivered)::bigint as delivered, sum(x.dead_lettered)::bigint as dead_lettered, sum(x.discarded)::bigint as discarded, sum(x.retrying)::bigint as retrying, sum(x.attempts_ok)::bigint as attempts_ok, sum(x.attempts_failed)::bigint as attempts_failed, sum(x.latency_us_sum)::bigint as latency_us_sum
    from spread x group by x.endpoint_id, x.minute, x.tenant order by x.endpoint_id, x.minute, x.tenant
    on conflict (endpoint_id, minute, tenant) do update set events = t.events + excluded.events, unmatched = t.unmatched + excluded.unmatched, opened = t.opened + excluded.opened, delivered = t.delivered + excluded.delivered, dead_lettered = t.dead_lettered + excluded.dead_lettered, discarded = t.discarded + excluded.discarded, retrying = t.retrying + excluded.retrying, attempts_ok = t.attempts_ok + excluded.attempts_ok, attempts_failed = t.attempts_failed + excluded.attempts_failed, latency_us_sum = t.latency_us_sum + excluded.latency_us_sum
),
totals as (
    insert into stats_totals as t (tenant, endpoint_id, events, unmatched, opened, delivered, dead_lettered, discarded, retrying, attempts_ok, attempts_failed, latency_us_sum)
    select x.tenant, x.endpoint_id, sum(x.events)::bigint as events, sum(x.unmatched)::bigint as unmatched, sum(x.opened)::bigint as opened, sum(x.delivered)::bigint as delivered, sum(x.dead_lettered)::bigint as dead_lettered, sum(x.discarded)::bigint as discarded, sum(x.retrying)::bigint as retrying, sum(x.attempts_ok)::bigint as attempts_ok, sum(x.attempts_failed)::bigint as attempts_failed, sum(x.latency_us_sum)::bigint as latency_us_sum
    from spread x group by x.tenant, x.endpoint_id order by x.tenant, x.endpoint_id
    on conflict (tenant, endpoint_id) do update set events = t.events + excluded.events, unmatched = t.unmatched + excluded.unmatched, opened = t.opened + excluded.opened, delivered = t.delivered + excluded.delivered, dead_lettered = t.dead_lettered + excluded.dead_lettered, discarded = t.discarded + excluded.discarded, retrying = t.retrying + excluded.retrying, attempts_ok = t.attempts_ok + excluded.attempts_ok, attempts_failed = t.attempts_failed + excluded.attempts_failed, latency_us_sum = t.latency_us_sum + excluded.latency_us_sum
)
select count(*) as "folded!" from taken
