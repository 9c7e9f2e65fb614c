-- Gives an event the deliveries back that it should have and that have no row. Which they are is told by the event's
-- own endpoint, by attempts, by letters and by $2 (what matches). Only when that gives exactly the $3 that are missing:
-- else nobody can know, and nothing is written.
with e as materialized (
    select e.id, e.tenant, e.endpoint_id, e.accepted_at from events e where e.id = $1
),
evidence as materialized (
    select x.endpoint_id
    from (
        select e.endpoint_id from e where e.endpoint_id is not null
        union
        select a.endpoint_id from attempts a where a.event_id = $1
        union
        select d.endpoint_id from dead_letters d
        where d.event_id = $1 and d.reason <> 'unknown_endpoint' and d.endpoint_id <> '00000000-0000-0000-0000-000000000000'
        union
        select c.endpoint_id from unnest($2::uuid[]) as c (endpoint_id)
    ) x
    where not exists (select from open_deliveries o where o.event_id = $1 and o.endpoint_id = x.endpoint_id)
        and not exists (select from closed_deliveries c where c.event_id = $1 and c.endpoint_id = x.endpoint_id)
        and exists (select from endpoints p where p.id = x.endpoint_id)
),
gone as materialized (
    select v.endpoint_id,
        coalesce((select max(a.number) from attempts a where a.event_id = $1 and a.endpoint_id = v.endpoint_id), 0) as attempts,
        exists (select from attempts a where a.event_id = $1 and a.endpoint_id = v.endpoint_id and a.success) as was_delivered,
        (select d.state from dead_letters d where d.event_id = $1 and d.endpoint_id = v.endpoint_id) as letter
    from evidence v
    where (select count(*) from evidence) = $3
),
judged as materialized (
    select g.*, case
            when g.letter = 'resolved' then 1
            when g.letter = 'open' then 2
            when g.letter = 'discarded' then 3
            when g.letter is null and g.was_delivered then 1
        end::smallint as status
    from gone g
),
closed as (
    insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base)
    select e.id, j.endpoint_id, e.tenant, j.status, $4::int, j.attempts, 0 from judged j cross join e where j.status is not null
    on conflict do nothing
    returning endpoint_id
),
opened as (
    insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base, lane, opened_at)
    select e.id, j.endpoint_id, e.tenant, now(), false, $4::int, j.attempts, j.attempts, case when j.letter is null then 0 else 2 end,
        case when j.letter is null then e.accepted_at else now() end
    from judged j cross join e where j.status is null
    on conflict do nothing
    returning endpoint_id
)
select (select count(*) from closed) + (select count(*) from opened) as "restored!"
