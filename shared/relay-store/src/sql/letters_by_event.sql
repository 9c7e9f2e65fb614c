-- Dead letters that wait for somebody, likewise.
select l.event_id as "id!", l.wanted as "wanted!", l.n as "n!"
from (
    select r.event_id, coalesce(r.tenant = $4, false) and r.state = 'open' and ($5::uuid is null or r.endpoint_id = $5) as wanted,
        row_number() over () as n
    from (
        select x.event_id, x.endpoint_id, x.tenant, x.state
        from dead_letters x
        where x.event_id < $1 and x.event_id >= $2
        order by x.event_id desc
        limit $3
    ) r
) l
where l.wanted or l.n = $3
limit $6
