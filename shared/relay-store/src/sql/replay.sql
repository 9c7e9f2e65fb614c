with l as materialized (
    select x.n, d.id, d.event_id, d.endpoint_id, d.tenant, d.state, d.tenant is not null and d.payload is not null as has_copy,
        coalesce(d.replayed_at > now() - interval '1 hour', false) as recently,
        (select p.is_active from endpoints p where p.id = d.endpoint_id and p.tenant = d.tenant) as is_active,
        (select true from events e where e.id = d.event_id) as has_event,
        (select c.status from closed_deliveries c where c.event_id = d.event_id and c.endpoint_id = d.endpoint_id) as closed,
        (select o.leased and o.due_at > now() from open_deliveries o where o.event_id = d.event_id and o.endpoint_id = d.endpoint_id) as lease_runs
    from unnest($1::uuid[]) with ordinality as x (id, n) join dead_letters d on d.id = x.id
    where $2::text is null or d.tenant = $2
    order by d.event_id, d.endpoint_id
    for update of d
),
ok as materialized (
    select l.*, case when $4 then
            -- Before everything else that is due for the endpoint: it is the circuit's probe.
            least(now(), (select o.due_at from open_deliveries o where o.claim >= 0 and o.endpoint_id = l.endpoint_id order by o.due_at limit 1)) - interval '1 millisecond'
            else now() end as due_at
    from l
    where l.has_event and l.is_active and (not l.recently or $3) and (l.closed is distinct from 1 or $3)
),
moved as (
    delete from closed_deliveries c using ok
    where c.event_id = ok.event_id and c.endpoint_id = ok.endpoint_id and c.status = ok.closed
    returning c.event_id, c.endpoint_id, c.tenant, c.status, c.claim, c.attempts, ok.n, ok.due_at
),
opened as (
    insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base, lane)
    select m.event_id, m.endpoint_id, m.tenant, m.due_at, false, m.claim + 1, m.attempts, m.attempts, 2 from moved m
    union all
    -- Never had a delivery: its endpoint was unknown then and exists now.
    select ok.event_id, ok.endpoint_id, ok.tenant, ok.due_at, false, 1, 0, 0, 2 from ok where ok.closed is null and ok.lease_runs is null
    on conflict do nothing
    returning event_id, endpoint_id
),
hastened as (
    update open_deliveries o
    set due_at = ok.due_at, leased = false
    from ok
    where $3 and o.event_id = any(array[ok.event_id]) and o.endpoint_id = ok.endpoint_id and (not o.leased or o.due_at <= now())
    returning o.event_id, o.endpoint_id
),
marked as (
    update dead_letters d
    set state = 'replayed', replay_count = d.replay_count + 1, replayed_at = now()
    from (select o.event_id, o.endpoint_id from opened o union select h.event_id, h.endpoint_id from hastened h) x
    where d.event_id = x.event_id and d.endpoint_id = x.endpoint_id
    returning d.id
),
statistics as (
    insert into stats_delta (tenant, endpoint_id, opened, delivered, dead_lettered, discarded)
    select m.tenant, m.endpoint_id, 0, -(count(*) filter (where m.status = 1))::int, -(count(*) filter (where m.status = 2))::int,
        -(count(*) filter (where m.status = 3))::int
    from moved m group by m.tenant, m.endpoint_id
    union all
    select ok.tenant, x.endpoint_id, x.opened, 0, x.dead, 0
    from ok cross join lateral (values (ok.endpoint_id, 1, 0), ('00000000-0000-0000-0000-000000000000'::uuid, -1, -1)) as x (endpoint_id, opened, dead)
    where ok.closed is null and ok.lease_runs is null and ok.state <> 'discarded'
)
select l.n as "n!", l.event_id as "event_id!", l.endpoint_id as "endpoint_id!", l.recently as "recently!", l.is_active,
    l.has_event, l.closed, l.lease_runs, l.id in (select m.id from marked m) as "replayed!", l.has_copy as "has_copy!"
from l
