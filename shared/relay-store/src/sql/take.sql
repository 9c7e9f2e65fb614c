update open_deliveries o
set claim = o.claim + 1, leased = true, due_at = now() + x.lease_us * interval '1 microsecond'
from unnest($1::uuid[], $2::uuid[], $3::int[], $4::int[], $5::bigint[]) with ordinality
    as x (event_id, endpoint_id, claim, attempts, lease_us, n)
where o.event_id = any(array[x.event_id]) and o.endpoint_id = x.endpoint_id and o.claim = x.claim and o.attempts = x.attempts
returning x.n as "n!", o.claim, now() as "now!"
