-- The index of what is due must serve the scheduler only. The queue is empty most of the time, and a plan that is made
-- then takes any index for as good as another; where results looked their rows up by endpoint instead of by the primary
-- key, each of them read all that its endpoint had open. A partial index serves only statements that say its
-- condition: `claim >= 0`, which is always true.
drop index open_deliveries_due;
create index open_deliveries_due on open_deliveries (endpoint_id, due_at) where claim >= 0;
