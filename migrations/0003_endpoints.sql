-- Endpoints choose their signatures, may have a key pair for the asymmetric one, and can be resumed without the
-- backlog of their pause.
alter table endpoints
    -- Names of the schemes; null = the default ones.
    add column signature_schemes text[],
    -- whsk_ and base64, where a scheme needs it; the previous one goes with previous_secret.
    add column signing_key text,
    add column previous_signing_key text,
    -- A resume is under way: what was accepted before is being discarded, and then `paused` ends.
    add column discard_before timestamptz;
create index endpoints_resuming on endpoints (id) where discard_before is not null;
