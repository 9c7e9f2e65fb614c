-- Open deliveries by descending event id; of those that are looked at, those that match, and the last one as a mark of how far it looked.
select o.event_id as "id!", o.wanted as "wanted!", o.n as "n!"
from (
    select r.event_id, r.tenant = $4 and ($5::uuid is null or r.endpoint_id = $5) and ($6::text is null or $6 = case
            when r.leased and r.due_at > now() then 'delivering' when r.attempts > r.base then 'failed' else 'pending' end) as wanted,
        row_number() over () as n
    from (
        select x.event_id, x.endpoint_id, x.tenant, x.leased, x.due_at, x.attempts, x.base
        from open_deliveries x
        where x.event_id < $1 and x.event_id >= $2
        order by x.event_id desc
        limit $3
    ) r
) o
where o.wanted or o.n = $3
limit $7
