-- Custom headers that are marked secret: by name the value, sealed where there is a key (relay-core/sealing.rs), as are
-- secret, previous_secret, signing_key and previous_signing_key from now on.
alter table endpoints add column secret_headers jsonb not null default '{}';
