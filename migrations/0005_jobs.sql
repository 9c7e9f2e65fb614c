-- Looking at and working on many dead letters: groups, jobs that replay or discard by filter, and letters that were
-- sent as new events.

alter table dead_letters
    -- The event that a letter was last sent as, where that is not its own ...
    add column new_event_id uuid,
    -- ... and the replay_count that it had then: until the replay counts, a repetition publishes the same id.
    add column new_event_for int;

-- Everybody's letters by time: operators' lists and jobs, retention.
create index dead_letters_by_time on dead_letters (dead_lettered_at, id);
-- Groups of open letters are found by skipping from one to the next, and counted without the table (that needs the
-- plain column in it too). An expression, since nobody's letters have to have a place among the tenants'.
create index dead_letters_groups on dead_letters (coalesce(tenant, ''), endpoint_id, reason, dead_lettered_at, id)
    include (tenant) where state = 'open';

-- A job walks over the open letters that came before it, oldest first. Its place and all counters change in the
-- transaction that changes the letters, and its row is locked meanwhile: whoever runs it, no letter is taken twice.
create table letter_jobs (
    id uuid primary key,
    -- Whose letters; null: everybody's and nobody's (an operator's job).
    tenant text,
    -- replay, discard
    kind text not null,
    -- queued, running, done, cancelled, failed
    state text not null default 'queued',
    endpoint_id uuid,
    event_type text,
    reason text,
    after_at timestamptz,
    before_at timestamptz,
    force boolean not null,
    -- Letters per second; null: as fast as it goes.
    rate int,
    -- Letters that match, counted at the start; null: not yet, or too many to count.
    total bigint,
    done bigint not null default 0,
    -- Left as they were, since they need it no more or not yet.
    skipped bigint not null default 0,
    errors bigint not null default 0,
    -- The first letters that could not be done, and why.
    error_examples jsonb not null default '[]',
    -- Why it failed.
    error text,
    position_at timestamptz,
    position_id uuid,
    -- The pace is used up until then.
    paced_until timestamptz,
    -- Whoever made it runs it until then.
    held_until timestamptz,
    -- Also the end of the walk: what is dead-lettered later is not touched.
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz
);
create index letter_jobs_unfinished on letter_jobs (created_at) where state in ('queued', 'running');
create index letter_jobs_of_tenant on letter_jobs (tenant, created_at desc, id desc);
create index letter_jobs_by_time on letter_jobs (created_at desc, id desc);
