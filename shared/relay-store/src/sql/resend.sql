with target as materialized (
    select x.n, x.id as endpoint_id, (select p.is_active from endpoints p where p.id = x.id and p.tenant = $1) as is_active
    from unnest($3::uuid[]) with ordinality as x (id, n)
    order by x.id
),
moved as (
    delete from closed_deliveries c using target t
    where c.event_id = $2 and c.endpoint_id = t.endpoint_id and c.tenant = $1 and t.is_active
    returning c.event_id, c.endpoint_id, c.tenant, c.status, c.claim, c.attempts
),
opened as (
    insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base, lane)
    select m.event_id, m.endpoint_id, m.tenant, now(), false, m.claim + 1, m.attempts, m.attempts, 2 from moved m
    on conflict do nothing
),
hastened as (
    update open_deliveries o
    set due_at = now(), leased = false
    from target t
    where o.event_id = $2 and o.endpoint_id = t.endpoint_id and o.tenant = $1 and t.is_active and (not o.leased or o.due_at <= now())
    returning o.endpoint_id
),
letters as (
    update dead_letters d
    set state = 'replayed', replay_count = d.replay_count + 1, replayed_at = now()
    from moved m where d.event_id = m.event_id and d.endpoint_id = m.endpoint_id
),
statistics as (
    insert into stats_delta (tenant, endpoint_id, delivered, dead_lettered, discarded)
    select m.tenant, m.endpoint_id, -((m.status = 1)::int), -((m.status = 2)::int), -((m.status = 3)::int) from moved m
)
select t.n as "n!", t.is_active,
    exists (select from moved m where m.endpoint_id = t.endpoint_id) as "reopened!",
    exists (select from hastened h where h.endpoint_id = t.endpoint_id) as "hastened!",
    exists (select from open_deliveries o where o.event_id = $2 and o.endpoint_id = t.endpoint_id and o.tenant = $1)
        or exists (select from closed_deliveries c where c.event_id = $2 and c.endpoint_id = t.endpoint_id and c.tenant = $1) as "exists!"
from target t
