#!/usr/bin/env bash
# Ends a running `webhook-relay up` of this checkout by its pid file, in an orderly way.
set -euo pipefail
cd "$(dirname "$0")/.."

pid_file=.relay/up.pid
pid="$(cat "$pid_file" 2> /dev/null || true)"
if [ -z "$pid" ] || ! tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q webhook-relay; then
  echo "nothing is running"
  exit 0
fi
kill -TERM "$pid"
# Requests in flight get their time-out, at most half a minute.
deadline=$((SECONDS + 60))
while kill -0 "$pid" 2> /dev/null; do
  if [ "$SECONDS" -ge "$deadline" ]; then
    echo "error: process $pid does not end; kill -9 $pid ends it (nothing accepted is lost)" >&2
    exit 1
  fi
  sleep 0.2
done
echo "stopped"
