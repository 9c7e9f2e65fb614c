// Uses types that were generated from the OpenAPI document:
//
//   npm install
//   curl -s http://127.0.0.1:8742/openapi.json -o openapi.json
//   npm run generate && npm run build
//   node try.js http://127.0.0.1:8742 http://127.0.0.1:9000/hook

import createClient from "openapi-fetch";
import process from "node:process";
import type { paths } from "./relay.js";

const [relay, receiver] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: relay });

const endpoint = await client.POST("/api/v1/endpoints", { body: { name: "From TypeScript", url: receiver } });
if (endpoint.error) throw new Error(endpoint.error.detail);
const event = await client.POST("/api/v1/events", {
  body: { endpoint_id: endpoint.data.id, event_type: "order.created", payload: { order_id: 42 } },
});
if (event.error) throw new Error(event.error.detail);

let attempts = 0;
let status = "";
for (let i = 0; i < 100 && status !== "delivered"; i++) {
  const seen = await client.GET("/api/v1/events/{event_id}", { params: { path: { event_id: event.data.id } } });
  if (seen.error) throw new Error(seen.error.detail);
  status = seen.data.status;
  attempts = seen.data.deliveries[0]?.attempt_count ?? 0;
  await new Promise((resolve) => setTimeout(resolve, 100));
}
console.log(event.data.event_type, status, `after ${attempts} attempt`);

// An id that no event has: the error is typed too.
const unknown = await client.GET("/api/v1/events/{event_id}", { params: { path: { event_id: endpoint.data.id } } });
console.log(unknown.error?.status, unknown.error?.type);
