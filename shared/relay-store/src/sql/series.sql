with raw as materialized (
    -- One statement: a fold between two of them would be seen twice or not at all.
    select s.minute as at, s.events, s.unmatched, s.opened, s.delivered, s.dead_lettered, s.discarded, s.retrying, s.attempts_ok, s.attempts_failed, s.latency_us_sum, s.buckets
    from stats_minutes s where $5 = 'minute' and s.endpoint_id = $2 and s.tenant = $1 and s.minute >= $3 and s.minute < $4
    union all
    select s.hour as at, s.events, s.unmatched, s.opened, s.delivered, s.dead_lettered, s.discarded, s.retrying, s.attempts_ok, s.attempts_failed, s.latency_us_sum, s.buckets
    from stats_hours s where $5 = 'hour' and s.endpoint_id = $2 and s.tenant = $1 and s.hour >= $3 and s.hour < $4
    union all
    -- What isn't folded yet; the nil endpoint stands for all of the tenant's.
    select date_trunc($5, d.at, 'UTC'), d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying, d.attempts_ok, d.attempts_failed, d.latency_us_sum,
        array(select (b.bucket::bigint << 40) | 1 from unnest(d.buckets) as b (bucket))
    from stats_pending d
    where d.tenant = $1 and (d.endpoint_id = $2 or $2 = '00000000-0000-0000-0000-000000000000') and d.at >= $3 and d.at < $4
),
counted as (
    select r.at, sum(r.events)::bigint as events, sum(r.unmatched)::bigint as unmatched, sum(r.opened)::bigint as opened, sum(r.delivered)::bigint as delivered, sum(r.dead_lettered)::bigint as dead_lettered, sum(r.discarded)::bigint as discarded, sum(r.retrying)::bigint as retrying, sum(r.attempts_ok)::bigint as attempts_ok, sum(r.attempts_failed)::bigint as attempts_failed, sum(r.latency_us_sum)::bigint as latency_us_sum from raw r group by r.at
),
bucketed as (
    select x.at, array_agg((x.bucket << 40) | x.samples order by x.bucket) as buckets
    from (
        select r.at, p.packed >> 40 as bucket, sum(p.packed & 1099511627775)::bigint as samples
        from raw r cross join lateral unnest(r.buckets) as p (packed) group by 1, 2
    ) x
    group by x.at
)
select c.at as "at!", c.events as "events!", c.unmatched as "unmatched!", c.opened as "opened!", c.delivered as "delivered!", c.dead_lettered as "dead_lettered!", c.discarded as "discarded!", c.retrying as "retrying!", c.attempts_ok as "attempts_ok!", c.attempts_failed as "attempts_failed!", c.latency_us_sum as "latency_us_sum!", coalesce(b.buckets, '{}') as "buckets!"
from counted c left join bucketed b using (at)
order by c.at
