select e.id, e.type as event_type, e.endpoint_id, e.accepted_at, e.fanout,
    coalesce(s.leased, 0) as "leased!", coalesce(s.retrying, 0) as "retrying!", coalesce(s.pending, 0) as "pending!",
    coalesce(s.delivered, 0) as "delivered!", coalesce(s.dead, 0) as "dead!", coalesce(s.discarded, 0) as "discarded!",
    coalesce(s.attempts, 0) as "attempts!", s.finished_at, s.next_retry_at
from unnest($1::uuid[]) with ordinality as x (id, n)
join events e on e.id = x.id
cross join lateral (
    select sum(d.leased) as leased, sum(d.retrying) as retrying, sum(d.pending) as pending, sum(d.delivered) as delivered,
        sum(d.dead) as dead, sum(d.discarded) as discarded, sum(d.attempts) as attempts, max(d.finished_at) as finished_at,
        min(d.next_retry_at) as next_retry_at
    from (
        select (o.leased and o.due_at > now())::int as leased, (not (o.leased and o.due_at > now()) and o.attempts > o.base)::int as retrying,
            (not (o.leased and o.due_at > now()) and o.attempts <= o.base)::int as pending, 0 as delivered, 0 as dead, 0 as discarded,
            o.attempts, null::timestamptz as finished_at,
            case when not (o.leased and o.due_at > now()) and o.attempts > o.base then o.due_at end as next_retry_at
        from open_deliveries o where o.event_id = e.id and ($7::uuid is null or o.endpoint_id = $7)
        union all
        select 0, 0, 0, (c.status = 1)::int, (c.status = 2)::int, (c.status = 3)::int, c.attempts, c.finished_at, null
        from closed_deliveries c where c.event_id = e.id and ($7::uuid is null or c.endpoint_id = $7)
        union all
        select 0, 0, 0, 0, (l.state = 'open')::int, (l.state = 'discarded')::int, 0, null, null
        from dead_letters l
        where l.event_id = e.id and ($7::uuid is null or l.endpoint_id = $7) and l.reason = 'unknown_endpoint' and l.state in ('open', 'discarded')
    ) d
) s
where e.tenant = $2 and e.accepted_at > $3 and e.accepted_at < $4
    and ($5::text is null or e.type = $5) and ($6::text is null or e.type ~ $6)
order by x.n
