with fence as (
    -- Per tenant of the batch: is the directory version that the matching used still the tenant's?
    select array_agg(coalesce((select t.directory_version from tenants t where t.id = x.tenant) = x.version, false) order by x.n) as fresh
    from unnest($1::text[], $2::bigint[]) with ordinality as x (tenant, version, n)
),
i as materialized (
    select x.*, (select fence.fresh from fence)[x.tenant_index] as fresh,
        -- With a key: is this event there, or the one of the same key with a neighbouring day's id?
        case when x.day_before is not null then relay_known_event(x.id, x.day_before, x.day_after) end as known
    from unnest($3::uuid[], $4::int[], $5::text[], $6::text[], $7::uuid[], $8::timestamptz[], $9::bytea[], $10::bytea[],
            $11::int[], $12::bytea[], $13::uuid[], $14::uuid[]) with ordinality
        as x (id, tenant_index, tenant, type, endpoint_id, accepted_at, idempotency_key, trace, fanout, payload, day_before, day_after, n)
),
e as (
    insert into events (id, tenant, type, endpoint_id, accepted_at, idempotency_key, trace, fanout, payload)
    select i.id, i.tenant, i.type, i.endpoint_id, i.accepted_at, i.idempotency_key, i.trace, i.fanout, i.payload
    from i where i.fresh and i.known is null
    on conflict do nothing
    returning id, tenant, type, fanout, payload, accepted_at
),
aliases as (
    insert into event_aliases (id, event_id)
    select x.id, x.event_id
    from (
        select a.id, coalesce(i.known, i.id) as event_id
        from unnest($15::bigint[], $16::uuid[]) as a (n, id) join i on i.n = a.n where i.fresh
        union
        select i.id, i.known from i where i.fresh and i.known <> i.id
    ) x
    where x.id <> x.event_id
    order by x.id
    on conflict do nothing
),
opened as (
    insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, lane, opened_at)
    select e.id, d.endpoint_id, e.tenant, now() + d.lease_us * interval '1 microsecond', d.leased, d.leased::int, d.lane, e.accepted_at
    from e join unnest($17::uuid[], $18::uuid[], $19::boolean[], $20::bigint[], $21::smallint[])
        as d (event_id, endpoint_id, leased, lease_us, lane) on d.event_id = e.id
    on conflict do nothing
    returning tenant, endpoint_id
),
dead as materialized (
    select e.id as event_id, d.endpoint_id, d.letter_id, e.tenant, e.type, d.reason, d.error,
        d.reason = 'endpoint_inactive' as has_endpoint, case when d.reason <> 'endpoint_inactive' then e.payload end as payload
    from e join unnest($22::uuid[], $23::uuid[], $24::uuid[], $25::text[], $26::bytea[])
        as d (event_id, endpoint_id, letter_id, reason, error) on d.event_id = e.id
),
closed as (
    insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base, last_error)
    select d.event_id, d.endpoint_id, d.tenant, 2, 0, 0, 0, d.error from dead d where d.has_endpoint
    on conflict do nothing
),
letters as (
    insert into dead_letters (event_id, endpoint_id, id, tenant, event_type, reason, error, payload)
    select d.event_id, d.endpoint_id, d.letter_id, d.tenant, d.type, d.reason, d.error, d.payload from dead d
    on conflict do nothing
),
statistics as (
    insert into stats_batches (deltas)
    select array_agg(row(s.tenant, s.endpoint_id, s.events, s.unmatched, s.opened, 0, s.dead, 0, 0, 0, 0, 0, '{}')::relay_stats)
    from (
        select x.tenant, x.endpoint_id, sum(x.events) as events, sum(x.unmatched) as unmatched, sum(x.opened) as opened, sum(x.dead) as dead
        from (
            select e.tenant, '00000000-0000-0000-0000-000000000000'::uuid as endpoint_id, 1 as events, (e.fanout = 0)::int as unmatched, 0 as opened, 0 as dead from e
            union all
            select o.tenant, o.endpoint_id, 0, 0, 1, 0 from opened o
            union all
            select d.tenant, case when d.has_endpoint then d.endpoint_id else '00000000-0000-0000-0000-000000000000'::uuid end, 0, 0, 1, 1 from dead d
        ) x
        group by x.tenant, x.endpoint_id
    ) s
    having count(*) > 0
)
select now() as "now!",
    array(select i.n from i where not i.fresh) as "stale!",
    array(select e.id from e) as "inserted!",
    array(select i.n from i where i.fresh and i.known <> i.id order by i.n) as "alias_n!",
    array(select i.known from i where i.fresh and i.known <> i.id order by i.n) as "alias_of!"
