-- One branch for each index that can lead: by endpoint, by tenant, or everybody's letters. The conditions on parameters
-- alone are looked at once, so the other two cost nothing, whatever the plan. The system's own letters are nobody's.
select count(*) as "n!" from (
    (
        select 1 as one from dead_letters d
        where $2::uuid is not null and d.endpoint_id = $2 and ($1::text is null or d.tenant = $1) and d.tenant is distinct from '_relay'
            and ($3::text is null or d.event_type = $3) and ($4::text is null or d.reason = $4)
            and case when $5::text is null then d.state in ('open', 'replayed') else d.state = $5 end
            and d.dead_lettered_at > coalesce($6::timestamptz, '-infinity') and d.dead_lettered_at < coalesce($7::timestamptz, 'infinity')
        limit $8
    )
    union all
    (
        select 1 as one from dead_letters d
        where $2 is null and $1 is not null and d.tenant = $1
            and ($3::text is null or d.event_type = $3) and ($4::text is null or d.reason = $4)
            and case when $5::text is null then d.state in ('open', 'replayed') else d.state = $5 end
            and d.dead_lettered_at > coalesce($6::timestamptz, '-infinity') and d.dead_lettered_at < coalesce($7::timestamptz, 'infinity')
        limit $8
    )
    union all
    (
        select 1 as one from dead_letters d
        where $2 is null and $1 is null and d.tenant is distinct from '_relay'
            and ($3::text is null or d.event_type = $3) and ($4::text is null or d.reason = $4)
            and case when $5::text is null then d.state in ('open', 'replayed') else d.state = $5 end
            and d.dead_lettered_at > coalesce($6::timestamptz, '-infinity') and d.dead_lettered_at < coalesce($7::timestamptz, 'infinity')
        limit $8
    )
) x
