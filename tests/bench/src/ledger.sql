-- One day of a ledger, `n` events long, of a system that has run for long: rows as the system writes them, short. Of a thousand events five
-- are dead letters, one is discarded, one is unmatched, a few wait for a retry; every tenth is another tenant's; one endpoint
-- has a backlog of a fifth of the last day. psql variables: day (days before today), n.
\set ON_ERROR_STOP on
set synchronous_commit = off;
set work_mem = '256MB';
select relay_make_partitions((now() at time zone 'utc')::date - :day);

create temporary table made as
select g, at, (hex || '7' || substr(md5(:day || '-' || g), 1, 19))::uuid as id, (hex || '7' || substr(md5(:day || '+' || g), 1, 19))::uuid as attempt,
    case when g % 10 = 9 then 'bench_other' else 'default' end as tenant,
    ('00000000-0000-7000-8000-' || lpad((case when g % 10 = 9 then 1000 when g % 10007 = 0 then 100 when :day = 1 and g % 5 = 0 then 1 else g % 100 end)::text, 12, '0'))::uuid as endpoint_id,
    case when g % 100003 = 11 then 'rare.type' when g % 10 < 5 then 'order.created' when g % 10 < 8 then 'order.item.added' else 'user.created' end as type,
    case when :day = 1 and g % 5 = 0 then 'pending' when g % 1000 between 1 and 5 then 'dead' when g % 1000 = 6 then 'discarded' when g % 5000 = 7 then 'failed'
        when g % 1000 = 8 then 'unmatched' else 'delivered' end as kind
from (
    select g, at, lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') as hex
    from (
        select g, ((now() at time zone 'utc')::date - :day)::timestamp at time zone 'utc' + g * (interval '86399 seconds' / :n) as at
        from generate_series(1, :n) g
    ) t
) h;

insert into events (id, tenant, type, accepted_at, fanout, payload)
select id, tenant, type, at, (kind <> 'unmatched')::int, convert_to('{"order_id":' || g || ',"customer":"c-' || g % 9973 || '","total":99.99}', 'UTF8') from made order by g;
insert into closed_deliveries (event_id, endpoint_id, tenant, status, claim, attempts, base, last_status, finished_at)
select id, endpoint_id, tenant, case kind when 'dead' then 2 when 'discarded' then 3 else 1 end, 1, 1, 0, case kind when 'dead' then 400 else 200 end, at + interval '50 ms'
from made where kind in ('delivered', 'dead', 'discarded') order by g;
insert into open_deliveries (event_id, endpoint_id, tenant, due_at, leased, claim, attempts, base)
select id, endpoint_id, tenant, now() + interval '1 year', false, 1, (kind = 'failed')::int, 0 from made where kind in ('failed', 'pending') order by g;
insert into attempts (event_id, endpoint_id, id, number, attempted_at, success, http_status, total_us, request_headers, response_headers, response_excerpt, pod)
select id, endpoint_id, attempt, 1, at, kind = 'delivered', case kind when 'delivered' then 200 else 400 end, 1234,
    'content-type: application/json', 'content-length: 2', 'ok', 'bench'
from made where kind not in ('unmatched', 'pending') order by g;
insert into dead_letters (event_id, endpoint_id, id, tenant, event_type, reason, attempts, last_status, dead_lettered_at)
select id, endpoint_id, attempt, tenant, type, 'permanent', 1, 400, at from made where kind = 'dead' order by g;
