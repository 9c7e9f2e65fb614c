with recursive with_rows as (
    (select o.endpoint_id from open_deliveries o where o.claim > -1 and not o.leased order by o.endpoint_id limit 1)
    union all
    select (
        select o.endpoint_id from open_deliveries o
        where o.claim > -1 and not o.leased and o.endpoint_id > w.endpoint_id order by o.endpoint_id limit 1
    )
    from with_rows w where w.endpoint_id is not null
)
select w.endpoint_id as "endpoint_id!", d.tenant as "tenant!", d.due_at as "due_at!"
from with_rows w
cross join lateral (
    select o.tenant, o.due_at from open_deliveries o
    where o.claim > -1 and not o.leased and o.endpoint_id = w.endpoint_id and o.due_at <= now()
    order by o.due_at limit 1
) d
where w.endpoint_id is not null
