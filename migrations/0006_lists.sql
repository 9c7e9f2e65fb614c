-- What the lists of the interface are read by. Each index gives rows in the order of its list, so that a part of a
-- list costs the same wherever it is and however long the list.

-- Events of one type, newest first.
create index events_of_type on events (tenant, type, accepted_at desc, id desc);

-- Attempts of one endpoint, newest first: an attempt's id begins with the time at which it was sent.
create index attempts_of_endpoint on attempts (endpoint_id, id desc);

-- Events that were sent to one endpoint, newest first. Nothing is listed by the time at which a delivery ended.
drop index closed_deliveries_of_endpoint;
create index closed_deliveries_of_endpoint on closed_deliveries (endpoint_id, event_id desc);
