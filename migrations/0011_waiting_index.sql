-- Most rows of `open_deliveries` never wait: they are leased from their first moment and deleted a moment later. While
-- somebody holds an old snapshot (a dump, a long report), their entries can't be cleaned out of an index, and a look for what is due
-- has to pass over all of them. So what waits has an index of its own, which those rows never enter; the other one serves the
-- rare looks for lapsed leases, and lists.
-- As in 0009 a partial index serves only statements that say its condition: here `claim > -1`, which is always true.
create index open_deliveries_waiting on open_deliveries (endpoint_id, due_at) where claim > -1 and not leased;
