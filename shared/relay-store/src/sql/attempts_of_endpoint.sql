select a.event_id, a.id, a.endpoint_id, a.number, a.attempted_at, a.success, a.http_status, a.error_class, a.error, a.total_us,
    a.connect_us, a.first_byte_us, a.request_headers, a.response_headers, a.response_excerpt, a.pod
from attempts a
where a.endpoint_id = $1 and a.id < $2
order by a.id desc
offset $3 limit $4
