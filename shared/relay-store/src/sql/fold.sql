with deltas as (
    -- Two folders at once take different rows.
    delete from stats_delta d
    where d.ctid in (select p.ctid from stats_delta p limit $1 for update skip locked)
    returning d.*
),
-- Rows of batches until they are as many, or as many bytes, as one folding takes; one at least. A row's size is known without
-- reading its array.
picked as materialized (
    select x.ctid, sum(x.bytes) over (rows unbounded preceding) - x.bytes as bytes_before
    from (select p.ctid, pg_column_size(p.deltas) as bytes from stats_batches p limit $2) x
),
batches as (
    delete from stats_batches b
    where b.ctid = any (array(
        select p.ctid from stats_batches p
        where p.ctid = any (array(select k.ctid from picked k where k.bytes_before < $4)) for update skip locked
    ))
    returning b.at, b.deltas
),
taken as materialized (
    select d.tenant, d.endpoint_id, d.at, d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum, d.buckets from deltas d
    union all
    select d.tenant, d.endpoint_id, b.at, d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum, d.buckets from batches b cross join lateral unnest(b.deltas) d
),
-- Each delta counts for its endpoint and for its tenant; those of the nil endpoint only for the tenant.
spread as materialized (
    select d.tenant, d.endpoint_id, date_trunc('minute', d.at) as minute, d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum from taken d
    union all
    select d.tenant, '00000000-0000-0000-0000-000000000000'::uuid, date_trunc('minute', d.at), d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum from taken d
    where d.endpoint_id <> '00000000-0000-0000-0000-000000000000'
),
-- The samples likewise, merged into one array for each row that is written. They are appended to what that row has, which costs less
-- than merging with it; only a row that has grown long is merged.
samples as materialized (
    select d.tenant, d.endpoint_id, date_trunc('minute', d.at) as minute, b.bucket::bigint as bucket, count(*) as samples
    from taken d cross join lateral unnest(d.buckets) as b (bucket) group by 1, 2, 3, 4
),
spread_samples as materialized (
    select s.* from samples s
    union all
    select s.tenant, '00000000-0000-0000-0000-000000000000'::uuid, s.minute, s.bucket, s.samples from samples s where s.endpoint_id <> '00000000-0000-0000-0000-000000000000'
),
minute_buckets as materialized (
    select x.tenant, x.endpoint_id, x.minute, array_agg((x.bucket << 40) | x.samples order by x.bucket) as buckets
    from (select s.tenant, s.endpoint_id, s.minute, s.bucket, sum(s.samples)::bigint as samples from spread_samples s group by 1, 2, 3, 4) x
    group by 1, 2, 3
),
hour_buckets as materialized (
    select x.tenant, x.endpoint_id, x.hour, array_agg((x.bucket << 40) | x.samples order by x.bucket) as buckets
    from (
        select s.tenant, s.endpoint_id, date_trunc('hour', s.minute, 'UTC') as hour, s.bucket, sum(s.samples)::bigint as samples
        from spread_samples s group by 1, 2, 3, 4
    ) x
    group by 1, 2, 3
),
minute_sums as materialized (
    select x.tenant, x.endpoint_id, x.minute, sum(x.events)::bigint as events, sum(x.unmatched)::bigint as unmatched, sum(x.opened)::bigint as opened, sum(x.delivered)::bigint as delivered, sum(x.dead_lettered)::bigint as dead_lettered, sum(x.discarded)::bigint as discarded, sum(x.retrying)::bigint as retrying, sum(x.attempts_ok)::bigint as attempts_ok, sum(x.attempts_failed)::bigint as attempts_failed, sum(x.latency_us_sum)::bigint as latency_us_sum
    from spread x group by x.endpoint_id, x.minute, x.tenant
),
minutes as (
    insert into stats_minutes as t (tenant, endpoint_id, minute, events, unmatched, opened, delivered, dead_lettered, discarded, retrying, attempts_ok, attempts_failed, latency_us_sum, buckets)
    select m.tenant, m.endpoint_id, m.minute, m.events, m.unmatched, m.opened, m.delivered, m.dead_lettered, m.discarded, m.retrying, m.attempts_ok, m.attempts_failed, m.latency_us_sum, coalesce(b.buckets, '{}')
    from minute_sums m left join minute_buckets b using (tenant, endpoint_id, minute) order by m.endpoint_id, m.minute, m.tenant
    on conflict (endpoint_id, minute, tenant) do update set events = t.events + excluded.events, unmatched = t.unmatched + excluded.unmatched, opened = t.opened + excluded.opened, delivered = t.delivered + excluded.delivered, dead_lettered = t.dead_lettered + excluded.dead_lettered, discarded = t.discarded + excluded.discarded, retrying = t.retrying + excluded.retrying, attempts_ok = t.attempts_ok + excluded.attempts_ok, attempts_failed = t.attempts_failed + excluded.attempts_failed, latency_us_sum = t.latency_us_sum + excluded.latency_us_sum, buckets = case
            when cardinality(t.buckets) + cardinality(excluded.buckets) <= $3 then t.buckets || excluded.buckets
            else relay_merge_buckets(t.buckets || excluded.buckets)
        end
),
hours as (
    insert into stats_hours as t (tenant, endpoint_id, hour, events, unmatched, opened, delivered, dead_lettered, discarded, retrying, attempts_ok, attempts_failed, latency_us_sum, buckets)
    select h.tenant, h.endpoint_id, h.hour, h.events, h.unmatched, h.opened, h.delivered, h.dead_lettered, h.discarded, h.retrying, h.attempts_ok, h.attempts_failed, h.latency_us_sum, coalesce(b.buckets, '{}')
    from (
        select x.tenant, x.endpoint_id, date_trunc('hour', x.minute, 'UTC') as hour, sum(x.events)::bigint as events, sum(x.unmatched)::bigint as unmatched, sum(x.opened)::bigint as opened, sum(x.delivered)::bigint as delivered, sum(x.dead_lettered)::bigint as dead_lettered, sum(x.discarded)::bigint as discarded, sum(x.retrying)::bigint as retrying, sum(x.attempts_ok)::bigint as attempts_ok, sum(x.attempts_failed)::bigint as attempts_failed, sum(x.latency_us_sum)::bigint as latency_us_sum
        from minute_sums x group by 1, 2, 3
    ) h left join hour_buckets b using (tenant, endpoint_id, hour) order by h.endpoint_id, h.hour, h.tenant
    on conflict (endpoint_id, hour, tenant) do update set events = t.events + excluded.events, unmatched = t.unmatched + excluded.unmatched, opened = t.opened + excluded.opened, delivered = t.delivered + excluded.delivered, dead_lettered = t.dead_lettered + excluded.dead_lettered, discarded = t.discarded + excluded.discarded, retrying = t.retrying + excluded.retrying, attempts_ok = t.attempts_ok + excluded.attempts_ok, attempts_failed = t.attempts_failed + excluded.attempts_failed, latency_us_sum = t.latency_us_sum + excluded.latency_us_sum, buckets = case
            when cardinality(t.buckets) + cardinality(excluded.buckets) <= $3 then t.buckets || excluded.buckets
            else relay_merge_buckets(t.buckets || excluded.buckets)
        end
),
totals as (
    insert into stats_totals as t (tenant, endpoint_id, events, unmatched, opened, delivered, dead_lettered, discarded, retrying, attempts_ok, attempts_failed, latency_us_sum)
    select x.tenant, x.endpoint_id, sum(x.events)::bigint as events, sum(x.unmatched)::bigint as unmatched, sum(x.opened)::bigint as opened, sum(x.delivered)::bigint as delivered, sum(x.dead_lettered)::bigint as dead_lettered, sum(x.discarded)::bigint as discarded, sum(x.retrying)::bigint as retrying, sum(x.attempts_ok)::bigint as attempts_ok, sum(x.attempts_failed)::bigint as attempts_failed, sum(x.latency_us_sum)::bigint as latency_us_sum
    from minute_sums x group by x.tenant, x.endpoint_id order by x.tenant, x.endpoint_id
    on conflict (tenant, endpoint_id) do update set events = t.events + excluded.events, unmatched = t.unmatched + excluded.unmatched, opened = t.opened + excluded.opened, delivered = t.delivered + excluded.delivered, dead_lettered = t.dead_lettered + excluded.dead_lettered, discarded = t.discarded + excluded.discarded, retrying = t.retrying + excluded.retrying, attempts_ok = t.attempts_ok + excluded.attempts_ok, attempts_failed = t.attempts_failed + excluded.attempts_failed, latency_us_sum = t.latency_us_sum + excluded.latency_us_sum
)
select (select count(*) from taken) as "deltas!",
    (select count(*) from deltas) = $1 or (select count(*) = $2 or coalesce(max(k.bytes_before), 0) >= $4 from picked k) as "more!"
