-- Per endpoint the deliveries that are due first, by the index on (endpoint_id, due_at): a tenant costs as much as it
-- has endpoints, however much waits.
with mine as materialized (
    select e.id from endpoints e where e.tenant = $1 and ($2::uuid is null or e.id = $2)
),
first as (
    select f.due_at, f.opened_at, f.attempts <= f.base as is_pending
    from mine cross join lateral (
        select o.due_at, o.opened_at, o.attempts, o.base from open_deliveries o where o.claim >= 0 and o.endpoint_id = mine.id order by o.due_at limit $3
    ) f
),
due as (
    select from mine cross join lateral (
        select from open_deliveries o where o.claim >= 0 and o.endpoint_id = mine.id and o.due_at <= now() order by o.due_at limit $4
    ) d
    limit $4
)
select (select count(*) from due) as "due!", min(f.due_at) filter (where f.due_at <= now()) as oldest_due_at,
    min(f.opened_at) filter (where f.is_pending) as oldest_pending_at
from first f
