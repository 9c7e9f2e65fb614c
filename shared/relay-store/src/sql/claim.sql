with waiting as materialized (
    select p.event_id, p.endpoint_id, p.due_at, b.lease_us, b.n
    from unnest($1::uuid[], $2::int[], $3::bigint[]) with ordinality as b (endpoint_id, row_limit, lease_us, n)
    cross join lateral (
        select o.event_id, o.endpoint_id, o.due_at from open_deliveries o
        where not $4 and o.claim > -1 and not o.leased and o.endpoint_id = b.endpoint_id and o.due_at <= now()
        order by o.due_at limit b.row_limit
        for update skip locked
    ) p
    limit $6
),
lapsed as materialized (
    select p.event_id, p.endpoint_id, p.due_at, b.lease_us, b.n
    from unnest($1::uuid[], $2::int[], $3::bigint[]) with ordinality as b (endpoint_id, row_limit, lease_us, n)
    cross join lateral (
        select o.event_id, o.endpoint_id, o.due_at from open_deliveries o
        where $4 and o.claim >= 0 and o.leased and o.endpoint_id = b.endpoint_id and o.due_at <= now()
        order by o.due_at limit b.row_limit
        for update skip locked
    ) p
    limit $6
),
picked as (select * from waiting union all select * from lapsed),
claimed as (
    update open_deliveries o
    set claim = o.claim + 1, leased = true, due_at = now() + p.lease_us * interval '1 microsecond'
    from picked p
    where o.event_id = any(array[p.event_id]) and o.endpoint_id = p.endpoint_id
    returning o.event_id, o.endpoint_id, o.tenant, o.claim, o.attempts, o.base, o.lane, p.due_at, p.n
)
select c.event_id, c.endpoint_id, c.tenant, c.claim, c.attempts, c.base, c.lane, c.n as "n!", now() as "now!",
    e.type as "event_type", e.accepted_at, e.trace,
    case when octet_length(e.payload) <= $5 then e.payload end as payload
from claimed c join events e on e.id = c.event_id
order by c.n, c.due_at
