#!/usr/bin/env bash
# Adds to .env what docker-compose.yml needs and what is not there yet: generated passwords and the operator's key.
set -euo pipefail
cd "$(dirname "$0")/.."

umask 077
touch .env
for name in RELAY_API_KEY POSTGRES_PASSWORD REDIS_PASSWORD \
  RELAY_NATS_INGEST_PASSWORD RELAY_NATS_DISPATCHER_PASSWORD RELAY_NATS_DELIVERER_PASSWORD \
  RELAY_NATS_DLQ_MANAGER_PASSWORD RELAY_NATS_RELAY_PASSWORD RELAY_NATS_PRODUCER_PASSWORD; do
  grep -q "^$name=" .env && continue
  # A letter first: NATS would read digits alone as a number.
  printf '%s=p%s\n' "$name" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >> .env
  echo "made $name"
done
