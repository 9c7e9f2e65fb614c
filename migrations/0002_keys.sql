-- API keys. The key itself is nowhere: `hash` is its SHA-256, which for 256 random bits is as good as a slow hash.

create table api_keys (
    id uuid primary key,
    tenant text not null references tenants (id),
    name text not null,
    -- The first characters of the key, so that its holder can tell which one it is.
    hint text not null,
    hash bytea not null unique check (octet_length(hash) = 32),
    scopes text[] not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    -- To some seconds: pods note uses in memory and write them now and then.
    last_used_at timestamptz,
    -- The tenant's directory_version of the last change: pods load what is above the version they know, as they do
    -- with endpoints. So a revocation reaches every pod by the same way and as fast.
    version bigint not null
);
create index api_keys_of_tenant on api_keys (tenant, created_at desc, id desc);
create index api_keys_changed on api_keys (tenant, version);
