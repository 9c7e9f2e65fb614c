-- One branch for each index that can lead: by endpoint, by tenant, or everybody's letters. The conditions on parameters
-- alone are looked at once, so the other two cost nothing, whatever the plan. The system's own letters are nobody's.
select x.id as "id!", x.dead_lettered_at as "dead_lettered_at!" from (
    (
        select d.id, d.dead_lettered_at from dead_letters d
        where $2::uuid is not null and d.endpoint_id = $2 and ($1::text is null or d.tenant = $1) and d.tenant is distinct from '_relay'
            and ($3::text is null or d.event_type = $3) and ($4::text is null or d.reason = $4)
            and case when $5::text is null then d.state in ('open', 'replayed') else d.state = $5 end
            and d.dead_lettered_at > coalesce($6::timestamptz, '-infinity') and d.dead_lettered_at < coalesce($7::timestamptz, 'infinity')
            and (d.dead_lettered_at, d.id) < (coalesce($8::timestamptz, 'infinity'), coalesce($9::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
        order by d.dead_lettered_at desc, d.id desc
        limit $10::bigint + $11::bigint
    )
    union all
    (
        select d.id, d.dead_lettered_at from dead_letters d
        where $2 is null and $1 is not null and d.tenant = $1
            and ($3::text is null or d.event_type = $3) and ($4::text is null or d.reason = $4)
            and case when $5::text is null then d.state in ('open', 'replayed') else d.state = $5 end
            and d.dead_lettered_at > coalesce($6::timestamptz, '-infinity') and d.dead_lettered_at < coalesce($7::timestamptz, 'infinity')
            and (d.dead_lettered_at, d.id) < (coalesce($8::timestamptz, 'infinity'), coalesce($9::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
        order by d.dead_lettered_at desc, d.id desc
        limit $10::bigint + $11::bigint
    )
    union all
    (
        select d.id, d.dead_lettered_at from dead_letters d
        where $2 is null and $1 is null and d.tenant is distinct from '_relay'
            and ($3::text is null or d.event_type = $3) and ($4::text is null or d.reason = $4)
            and case when $5::text is null then d.state in ('open', 'replayed') else d.state = $5 end
            and d.dead_lettered_at > coalesce($6::timestamptz, '-infinity') and d.dead_lettered_at < coalesce($7::timestamptz, 'infinity')
            and (d.dead_lettered_at, d.id) < (coalesce($8::timestamptz, 'infinity'), coalesce($9::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
        order by d.dead_lettered_at desc, d.id desc
        limit $10::bigint + $11::bigint
    )
) x
order by x.dead_lettered_at desc, x.id desc
offset $10 limit $11
