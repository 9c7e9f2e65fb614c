-- The ledger: who may be delivered to, what was accepted, what is still to be done, what was done.
--
-- Tables that grow with traffic are partitioned by ranges of the event id, one partition a UTC day: the first
-- 48 bits of every event id are its time in milliseconds. There is no DEFAULT partition on purpose: a row in it
-- would block the making of that day's partition.

-- Tenants. `directory_version` is raised in the transaction of every change of the tenant's endpoints that
-- matters to matching or delivery; the row lock puts those changes in one order.
create table tenants (
    id text primary key check (id ~ '^[a-z0-9_][a-z0-9_-]{0,62}$'),
    directory_version bigint not null default 1,
    created_at timestamptz not null default now()
);
insert into tenants (id) values ('default'), ('_relay');

create table endpoints (
    id uuid primary key,
    tenant text not null references tenants (id),
    name text not null,
    url text not null,
    event_types_filter text[] not null default '{}',
    custom_headers jsonb not null default '{}',
    max_retries int not null,
    retry_backoff_base double precision not null,
    retry_max_delay_seconds int not null,
    retry_schedule_seconds int[],
    timeout_seconds int not null,
    circuit_failure_threshold int not null,
    circuit_window_seconds int not null,
    circuit_recovery_seconds int not null,
    secret text not null,
    previous_secret text,
    previous_secret_until timestamptz,
    secret_rotated_at timestamptz,
    is_active boolean not null default true,
    paused boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz,
    -- The tenant's directory_version of the last change: pods load what is above the version they know.
    version bigint not null
);
create index endpoints_of_tenant on endpoints (tenant, created_at desc, id desc);
create index endpoints_changed on endpoints (tenant, version);
-- Whose open deliveries are to be closed.
create index endpoints_inactive on endpoints (id) where not is_active;

create table events (
    id uuid primary key,
    tenant text not null,
    type text not null,
    endpoint_id uuid,
    accepted_at timestamptz not null,
    -- What producers send is bytes here: a NUL in a text column would fail a whole batch.
    idempotency_key bytea,
    trace bytea,
    -- How many deliveries the matching gave; 0 = unmatched.
    fanout int not null,
    payload bytea not null
) partition by range (id);
create index events_of_tenant on events (tenant, accepted_at desc, id desc);

-- The queue. A row here is work to be done; `due_at` always says when somebody will look at it: at the end of
-- its lease while `leased`, else at its true time. Holding (pause, open circuit, full) is never written here.
create table open_deliveries (
    event_id uuid not null,
    endpoint_id uuid not null,
    tenant text not null,
    due_at timestamptz not null,
    leased boolean not null,
    -- The fence: raised by each claim, each check and each replay; jobs and results carry it.
    claim int not null,
    attempts int not null default 0,
    -- Attempts before the last replay: attempts - base is what the retry budget looks at.
    base int not null default 0,
    lane smallint not null default 0,
    -- Why it was last handed back unsent (0 = it wasn't).
    hand_back smallint not null default 0,
    last_status int,
    last_error bytea,
    primary key (event_id, endpoint_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
create index open_deliveries_due on open_deliveries (endpoint_id, due_at);

create table closed_deliveries (
    event_id uuid not null,
    endpoint_id uuid not null,
    tenant text not null,
    -- 1 delivered, 2 dead-lettered, 3 discarded
    status smallint not null,
    claim int not null,
    attempts int not null,
    base int not null,
    last_status int,
    last_error bytea,
    finished_at timestamptz not null default now(),
    primary key (event_id, endpoint_id)
) partition by range (event_id);
create index closed_deliveries_of_endpoint on closed_deliveries (endpoint_id, finished_at desc, event_id desc);

create table attempts (
    event_id uuid not null,
    endpoint_id uuid not null,
    id uuid not null,
    number int not null,
    attempted_at timestamptz not null,
    success boolean not null,
    http_status int,
    error_class text,
    error bytea,
    total_us int not null,
    connect_us int,
    first_byte_us int,
    request_headers bytea not null,
    response_headers bytea not null,
    response_excerpt bytea not null,
    pod text not null,
    primary key (event_id, endpoint_id, id)
) partition by range (event_id);

-- Another day's id of an idempotency key: the same event. Look-ups read `events` first.
create table event_aliases (
    id uuid primary key,
    event_id uuid not null
) partition by range (id);

create table dead_letters (
    -- A letter without an event has an id derived from its stream position here, and a nil endpoint.
    event_id uuid not null,
    endpoint_id uuid not null,
    id uuid not null unique,
    -- Null: belongs to no tenant (bad subject, unknown tenant).
    tenant text,
    event_type text,
    -- open, replayed, resolved, discarded
    state text not null default 'open',
    reason text not null,
    error bytea,
    last_status int,
    attempts int not null default 0,
    replay_count int not null default 0,
    replayed_at timestamptz,
    dead_lettered_at timestamptz not null default now(),
    -- A copy where the event isn't stored (malformed), or its partition is gone.
    payload bytea,
    subject bytea,
    primary key (event_id, endpoint_id)
);
create index dead_letters_of_tenant on dead_letters (tenant, dead_lettered_at desc, id desc);
create index dead_letters_of_endpoint on dead_letters (endpoint_id, dead_lettered_at desc, id desc);

-- The key is the change itself: a repeated statement writes it once.
create table circuit_events (
    endpoint_id uuid not null,
    at timestamptz not null,
    pod text not null,
    from_state text not null,
    to_state text not null,
    why text not null,
    primary key (endpoint_id, at, pod, to_state)
);

-- Statistics: append-only deltas, written by the statements that change something, folded into minutes and
-- totals by a leader. Counters are net: sums of them are today's state. The nil endpoint stands for the tenant.
create table stats_delta (
    tenant text not null,
    endpoint_id uuid not null,
    at timestamptz not null default now(),
    events int not null default 0,
    unmatched int not null default 0,
    opened int not null default 0,
    delivered int not null default 0,
    dead_lettered int not null default 0,
    discarded int not null default 0,
    -- open deliveries that wait for a retry
    retrying int not null default 0,
    attempts_ok int not null default 0,
    attempts_failed int not null default 0,
    latency_us_sum bigint not null default 0
);
create index stats_delta_of_endpoint on stats_delta (tenant, endpoint_id);
create table stats_minutes (
    tenant text not null,
    endpoint_id uuid not null,
    minute timestamptz not null,
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
    primary key (endpoint_id, minute, tenant)
);
create table stats_totals (
    tenant text not null,
    endpoint_id uuid not null,
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
    primary key (tenant, endpoint_id)
);

-- Leadership by lease row: a black-holed connection can't hold it for ever. Everything a leader does is safe
-- with two leaders.
create table leases (
    name text primary key,
    holder text not null,
    until timestamptz not null
);

-- The smallest event id of a UTC day, for partition bounds.
create function relay_day_floor(day date) returns uuid language sql immutable strict parallel safe as $$
    select (lpad(to_hex((extract(epoch from day::timestamp) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- Makes a day's partitions where they are missing. Called for today and a week ahead, and on demand.
create function relay_make_partitions(day date) returns void language plpgsql as $$
declare
    parent text;
    part text;
begin
    -- Making a partition locks its parent: rather fail and try again than queue everything behind a long read.
    perform set_config('lock_timeout', '2s', true);
    -- One maker at a time; others wait here instead of failing on "already exists".
    perform pg_advisory_xact_lock(hashtextextended('relay_make_partitions', 0));
    foreach parent in array array['events', 'closed_deliveries', 'attempts', 'event_aliases'] loop
        part := parent || '_' || to_char(day, 'YYYYMMDD');
        if to_regclass(part) is null then
            execute format('create table %I partition of %I for values from (%L) to (%L)',
                part, parent, relay_day_floor(day), relay_day_floor(day + 1));
        end if;
    end loop;
end
$$;

-- The stored event that an id stands for: its own, or one of the same key with a neighbouring day's id. A
-- function, so that the dispatch statement doesn't open every day's partition each time it starts.
create function relay_known_event(event uuid, day_before uuid, day_after uuid) returns uuid language plpgsql stable as $$
declare
    known uuid;
begin
    select e.id into known from events e where e.id = event;
    if known is null then
        select e.id into known from events e where e.id = day_before;
    end if;
    if known is null then
        select e.id into known from events e where e.id = day_after;
    end if;
    return known;
end
$$;

-- An event's type; a function for the same reason.
create function relay_event_type(event uuid) returns text language plpgsql stable as $$
begin
    return (select e.type from events e where e.id = event);
end
$$;

-- A 2xx whose delivery isn't open: makes a dead-lettered or discarded one delivered, unless it was sent again
-- since, and resolves its letter. Returns the status that it had; negative: left as it was; null: there is no
-- closed row. Volatile, so it sees what others have committed since the record statement began.
create function relay_late_success(event uuid, endpoint uuid, number int, http_status int) returns int language plpgsql volatile as $$
declare
    was closed_deliveries%rowtype;
begin
    select * into was from closed_deliveries c where c.event_id = event and c.endpoint_id = endpoint for update;
    if not found then
        return null;
    end if;
    if was.status = 1 or number <= was.base then
        return -was.status;
    end if;
    update closed_deliveries c
    set status = 1, attempts = greatest(c.attempts, number), last_status = http_status, last_error = null, finished_at = now()
    where c.event_id = event and c.endpoint_id = endpoint;
    update dead_letters d set state = 'resolved' where d.event_id = event and d.endpoint_id = endpoint;
    return was.status;
end
$$;

select relay_make_partitions((now() at time zone 'utc')::date + d) from generate_series(-2, 7) as d;
