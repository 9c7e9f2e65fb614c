-- Groups are found by skipping over the index from the first letter of one to the first of the next; only those of the
-- page are counted, and up to a limit. $1 tenant, $2 endpoint, $3 reason, $4 groups at most, $5 letters counted at most,
-- $6 and $7 position, $8 offset, $9 limit.
with recursive g as (
    (
        select coalesce(d.tenant, '') as owner, d.endpoint_id, d.reason, d.dead_lettered_at as first_at, d.id as first_id, 1 as n
        from dead_letters d
        where d.state = 'open' and (coalesce(d.tenant, ''), d.endpoint_id, d.reason) >= (coalesce($1::text, ''), '00000000-0000-0000-0000-000000000000'::uuid, '')
        order by coalesce(d.tenant, ''), d.endpoint_id, d.reason, d.dead_lettered_at, d.id
        limit 1
    )
    union all
    select x.owner, x.endpoint_id, x.reason, x.first_at, x.first_id, g.n + 1
    from g cross join lateral (
        select coalesce(d.tenant, '') as owner, d.endpoint_id, d.reason, d.dead_lettered_at as first_at, d.id as first_id
        from dead_letters d
        where d.state = 'open' and (coalesce(d.tenant, ''), d.endpoint_id, d.reason) > (g.owner, g.endpoint_id, g.reason)
        order by coalesce(d.tenant, ''), d.endpoint_id, d.reason, d.dead_lettered_at, d.id
        limit 1
    ) x
    where g.n <= $4::int and ($1 is null or g.owner = $1)
),
wanted as materialized (
    select g.* from g
    where ($1 is null or g.owner = $1) and g.owner <> '_relay' and ($2::uuid is null or g.endpoint_id = $2) and ($3::text is null or g.reason = $3)
),
page as materialized (
    select w.* from wanted w
    where (w.first_at, w.first_id) < (coalesce($6::timestamptz, 'infinity'), coalesce($7::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
    order by w.first_at desc, w.first_id desc
    offset $8 limit $9
)
select p.owner as "owner!", p.endpoint_id as "endpoint_id!", p.reason as "reason!", p.first_at as "first_at!", p.first_id as "first_id!",
    l.last_at as "last_at!", l.last_id as "last_id!", c.letters as "letters!", (select count(*) from wanted) as "groups!"
from page p
cross join lateral (
    select d.dead_lettered_at as last_at, d.id as last_id
    from dead_letters d
    where d.state = 'open' and coalesce(d.tenant, '') = p.owner and d.endpoint_id = p.endpoint_id and d.reason = p.reason
    order by d.dead_lettered_at desc, d.id desc
    limit 1
) l
cross join lateral (
    select count(*) as letters from (
        select 1 from dead_letters d
        where d.state = 'open' and coalesce(d.tenant, '') = p.owner and d.endpoint_id = p.endpoint_id and d.reason = p.reason
        limit $5::bigint + 1
    ) x
) c
order by p.first_at desc, p.first_id desc
