-- The deltas of one batch in one row. The statements over batches wrote a row of `stats_delta` for each endpoint of the
-- batch, so with a thousand endpoints in turn each delivery had two of them to insert, index, delete and clean up.
-- Statements that change little, and pods of before this migration, still write `stats_delta`; both are folded.
create type relay_stats as (
    tenant text,
    endpoint_id uuid,
    events int,
    unmatched int,
    opened int,
    delivered int,
    dead_lettered int,
    discarded int,
    retrying int,
    attempts_ok int,
    attempts_failed int,
    latency_us_sum bigint,
    buckets smallint[]
);
create table stats_batches (
    at timestamptz not null default now(),
    deltas relay_stats[] not null
);
-- Rows live for seconds: compressing them costs more than it saves.
alter table stats_batches alter column deltas set storage external;
alter table stats_batches set (toast_tuple_target = 8160);
-- Updated over and over: with room on the page, an update needs no new entry in the index.
alter table stats_minutes set (fillfactor = 50);
alter table stats_hours set (fillfactor = 50);
alter table stats_totals set (fillfactor = 50);
-- Merged or not: the same bucket may be there several times, whoever reads sums them up.
comment on column stats_minutes.buckets is 'bucket number * 2^40 + samples; a bucket may occur several times';
comment on column stats_hours.buckets is 'bucket number * 2^40 + samples; a bucket may occur several times';

-- What isn't folded yet.
create view stats_pending as
    select d.tenant, d.endpoint_id, d.at, d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying,
        d.attempts_ok, d.attempts_failed, d.latency_us_sum, d.buckets
    from stats_delta d
    union all
    select d.tenant, d.endpoint_id, b.at, d.events, d.unmatched, d.opened, d.delivered, d.dead_lettered, d.discarded, d.retrying,
        d.attempts_ok, d.attempts_failed, d.latency_us_sum, d.buckets
    from stats_batches b cross join lateral unnest(b.deltas) d;
