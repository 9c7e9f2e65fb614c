select a.event_id, a.id, a.endpoint_id, a.number, a.attempted_at, a.success, a.http_status, a.error_class, a.error, a.total_us,
    a.connect_us, a.first_byte_us, a.request_headers, a.response_headers, a.response_excerpt, a.pod
from attempts a
where a.endpoint_id = $1
    -- What a page skips is counted off in the index alone.
    and a.id <= (select x.id from attempts x where x.endpoint_id = $1 and x.id < $2 order by x.id desc offset $3 limit 1)
order by a.id desc
limit $4
