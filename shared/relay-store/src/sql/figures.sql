-- Endpoints whose net statistics of open deliveries differ from the rows; with $1 the difference is added to the
-- statistics, which are sums, so whatever happens meanwhile is added beside it.
with told as (
    select x.endpoint_id, sum(x.open)::bigint as open, sum(x.retrying)::bigint as retrying
    from (
        select t.endpoint_id, t.opened - t.delivered - t.dead_lettered - t.discarded as open, t.retrying from stats_totals t
        union all
        select d.endpoint_id, d.opened - d.delivered - d.dead_lettered - d.discarded, d.retrying from stats_pending d
    ) x
    where x.endpoint_id <> '00000000-0000-0000-0000-000000000000'
    group by x.endpoint_id
),
rows as (
    select o.endpoint_id, count(*) as open, count(*) filter (where o.attempts > o.base) as retrying from open_deliveries o group by o.endpoint_id
),
wrong as materialized (
    select coalesce(t.endpoint_id, r.endpoint_id) as endpoint_id, coalesce(t.open, 0) as told_open, coalesce(t.retrying, 0) as told_retrying,
        coalesce(r.open, 0) as open, coalesce(r.retrying, 0) as retrying
    from told t full join rows r on r.endpoint_id = t.endpoint_id
    where coalesce(t.open, 0) <> coalesce(r.open, 0) or coalesce(t.retrying, 0) <> coalesce(r.retrying, 0)
    order by 1 limit $2
),
added as (
    insert into stats_delta (tenant, endpoint_id, opened, retrying)
    select coalesce((select p.tenant from endpoints p where p.id = w.endpoint_id), '_relay'), w.endpoint_id, (w.open - w.told_open)::int,
        (w.retrying - w.told_retrying)::int
    from wrong w where $1
)
select w.endpoint_id as "endpoint_id!", w.told_open as "told_open!", w.told_retrying as "told_retrying!", w.open as "open!", w.retrying as "retrying!"
from wrong w
