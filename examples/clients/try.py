"""Uses a client that was generated from the OpenAPI document:

    pip install openapi-python-client
    curl -s http://127.0.0.1:8742/openapi.json -o openapi.json
    openapi-python-client generate --path openapi.json --meta none --output-path relay_client
    python3 try.py http://127.0.0.1:8742 http://127.0.0.1:9000/hook
"""

import sys
import time

from relay_client import Client
from relay_client.api.endpoints import create_endpoint
from relay_client.api.events import get_event, send_event
from relay_client.models import EndpointRequest, EventRequest, Problem

relay, receiver = sys.argv[1:3]
client = Client(base_url=relay)

endpoint = create_endpoint.sync(client=client, body=EndpointRequest(name="From Python", url=receiver))
event = send_event.sync(
    client=client,
    body=EventRequest(event_type="order.created", payload={"order_id": 42}, endpoint_id=endpoint.id),
)
for _ in range(100):
    seen = get_event.sync(event.id, client=client)
    if seen.status == "delivered":
        break
    time.sleep(0.1)
print(seen.event_type, seen.status, f"after {seen.deliveries[0].attempt_count} attempt")

# An id that no event has: the error is typed too.
problem = get_event.sync(endpoint.id, client=client)
assert isinstance(problem, Problem)
print(problem.status, problem.type_)
