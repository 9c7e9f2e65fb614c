-- Statistics with percentiles and hours: logarithmic histograms beside the counters, a table of hours beside the
-- one of minutes.

-- When this life of an open delivery began: when its event was accepted, or when it was sent again. The default is
-- for the second; rows that are open during the migration count from now on.
alter table open_deliveries add column opened_at timestamptz not null default now();

-- One number for each sample: the bucket of an answered attempt's time, or 512 + the bucket of the time from
-- `opened_at` to delivered.
alter table stats_delta add column buckets smallint[] not null default '{}';
-- Merged: bucket number * 2^40 + how many samples are in it, in the order of the buckets.
alter table stats_minutes add column buckets bigint[] not null default '{}';

create table stats_hours (
    tenant text not null,
    endpoint_id uuid not null,
    hour timestamptz not null,
    events bigint not null,
    unmatched bigint not null,
    opened bigint not null,
    delivered bigint not null,
    dead_lettered bigint not null,
    discarded bigint not null,
    retrying bigint not null,
    attempts_ok bigint not null,
    attempts_failed bigint not null,
    latency_us_sum bigint not null,
    buckets bigint[] not null default '{}',
    primary key (endpoint_id, hour, tenant)
);
insert into stats_hours (tenant, endpoint_id, hour, events, unmatched, opened, delivered, dead_lettered, discarded, retrying, attempts_ok, attempts_failed, latency_us_sum)
    select m.tenant, m.endpoint_id, date_trunc('hour', m.minute, 'UTC'), sum(m.events), sum(m.unmatched), sum(m.opened), sum(m.delivered),
        sum(m.dead_lettered), sum(m.discarded), sum(m.retrying), sum(m.attempts_ok), sum(m.attempts_failed), sum(m.latency_us_sum)
    from stats_minutes m group by 1, 2, 3;

-- The bucket of a time in microseconds: as many as there are bounds at or below it. The bounds divide each doubling
-- from 64 us to 2^40 us (12.7 days) into eight equal parts. The same as Bucket::of in the core; a test compares.
do $$ begin
    execute format('create function relay_bucket(us bigint) returns smallint language sql immutable strict parallel safe as %L',
        format('select width_bucket(us, %L::bigint[])::smallint', (
            select array_agg((8 + part) * (1::bigint << (octave - 3)) order by octave, part)
            from generate_series(6, 40) octave, generate_series(0, 7) part
            where octave < 40 or part = 0
        )));
end $$;

-- Sums what is in the same bucket, of merged buckets one after the other.
create function relay_merge_buckets(packed bigint[]) returns bigint[] language sql immutable parallel safe as $$
    select coalesce(array_agg((x.bucket << 40) | x.samples order by x.bucket), '{}')
    from (select p >> 40 as bucket, sum(p & 1099511627775)::bigint as samples from unnest(packed) as p group by 1) x
$$;
