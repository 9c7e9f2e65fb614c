with i as materialized (
    select x.* from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as x (event_id, endpoint_id, letter_id)
),
gone as (
    delete from open_deliveries o using i
    where o.event_id = any(array[i.event_id]) and o.endpoint_id = i.endpoint_id
        -- A job that is out reports for itself; its lease lapses if it doesn't.
        and (not o.leased or o.due_at <= now())
        and (not $4 or not (select p.is_active from endpoints p where p.id = o.endpoint_id))
    returning o.*, i.letter_id
),
closed as (
    insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base, last_status, last_error)
    select g.event_id, g.endpoint_id, g.tenant, $5::smallint, g.claim, g.attempts, g.base, g.last_status, coalesce($7::bytea, g.last_error)
    from gone g
    on conflict do nothing
),
letters as (
    insert into dead_letters (event_id, endpoint_id, id, tenant, event_type, reason, error, last_status, attempts, payload)
    select g.event_id, g.endpoint_id, g.letter_id, g.tenant, (select e.type from events e where e.id = g.event_id), $6::text, $7::bytea,
        g.last_status, g.attempts, case when $8 then (select e.payload from events e where e.id = g.event_id) end
    from gone g where $5 = 2
    order by g.event_id, g.endpoint_id
    on conflict (event_id, endpoint_id) do update
    set state = 'open', reason = excluded.reason, error = excluded.error, last_status = excluded.last_status, attempts = excluded.attempts,
        dead_lettered_at = excluded.dead_lettered_at, payload = coalesce(excluded.payload, dead_letters.payload)
),
-- Discarded while it was being replayed: its letter is discarded again.
discarded as (
    update dead_letters d
    set state = 'discarded'
    from gone g
    where $5 = 3 and g.lane = 2 and d.event_id = g.event_id and d.endpoint_id = g.endpoint_id
),
statistics as (
    insert into stats_delta (tenant, endpoint_id, dead_lettered, discarded, retrying)
    select g.tenant, g.endpoint_id, count(*) filter (where $5 = 2)::int, count(*) filter (where $5 = 3)::int,
        -(count(*) filter (where g.attempts > g.base))::int
    from gone g group by g.tenant, g.endpoint_id
)
select count(*) as "closed!" from gone
