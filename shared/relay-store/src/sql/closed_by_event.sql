-- Closed deliveries of one endpoint, likewise.
select c.event_id as "id!", c.wanted as "wanted!", c.n as "n!"
from (
    select r.event_id, ($5::smallint is null or r.status = $5) as wanted, row_number() over () as n
    from (
        select x.event_id, x.status
        from closed_deliveries x
        where x.endpoint_id = $4 and x.event_id < $1 and x.event_id >= $2
        order by x.event_id desc
        limit $3
    ) r
) c
where c.wanted or c.n = $3
limit $6
