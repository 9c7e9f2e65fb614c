#!/usr/bin/env bash
# Adds to .env what docker-compose.yml needs and what is not there yet: generated passwords, the operator's key,
# and the key that encrypts secrets in the database.
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
if ! grep -q '^RELAY_SECRETS_KEY=' .env; then
  # As `webhook-relay secrets generate` makes it.
  printf 'RELAY_SECRETS_KEY=whek_%s\n' "$(head -c 32 /dev/urandom | base64 -w 0)" >> .env
  echo "made RELAY_SECRETS_KEY: keep a copy of it apart from the database"
fi
