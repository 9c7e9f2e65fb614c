-- Up to when retention has thrown away what was stored. Who compares the ledger with the accept log must know: the log's history
-- may be kept longer, and what is missing here would be taken for lost.
create table retention_marks (
    -- `days`: events, and everything of them, of days before; `letters`: dead letters from before.
    what text primary key check (what in ('days', 'letters')),
    before timestamptz not null
);
