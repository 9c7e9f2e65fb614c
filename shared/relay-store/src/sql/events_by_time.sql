-- Newest first below a position; of the rows that are looked at, those that match, and the last one as a mark of how far it looked.
select e.id as "id!", e.accepted_at as "accepted_at!", e.wanted as "wanted!", e.n as "n!"
from (
    select r.id, r.accepted_at, ($6::text is null or r.type ~ $6) and ($7::bool is null or (r.fanout > 0) = $7) as wanted, row_number() over () as n
    from (
        select x.id, x.accepted_at, x.type, x.fanout
        from events x
        where x.tenant = $1 and x.accepted_at > $2 and (x.accepted_at, x.id) < ($3, $4)
        order by x.accepted_at desc, x.id desc
        offset $9 limit $5
    ) r
) e
where e.wanted or e.n = $5
limit $8
