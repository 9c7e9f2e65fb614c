#!/usr/bin/env bash
# Runs a command with a throw-away PostgreSQL and Redis on free ports of loopback: DATABASE_URL and REDIS_URL say where.
# They end, and their data go, with the command.
#
#   with-servers.sh cargo nextest run
set -euo pipefail

dir="$(mktemp -d)"
chmod 711 "$dir"
pids=()
as_user=()

finish() {
  local pid
  for pid in "${pids[@]}"; do kill -INT "$pid" 2> /dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2> /dev/null || true; done
  rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() { printf 'error: %s\n' "$1" >&2; [ -z "${2:-}" ] || tail -n 20 "$2" >&2; exit 1; }

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

postgres_bin() {
  local found
  found="$(find /usr/lib/postgresql -maxdepth 3 -path '*/bin/initdb' 2> /dev/null | sort -V | tail -n 1)"
  [ -n "$found" ] || found="$(command -v initdb)" || fail "PostgreSQL is missing: .ci/install.sh servers"
  dirname "$found"
}

start_postgres() {
  local bin port
  bin="$(postgres_bin)"
  port="$(free_port)"
  mkdir "$dir/postgres"
  if [ "$(id -u)" = 0 ]; then
    chown postgres "$dir/postgres"
    as_user=(--reuid=postgres --regid=postgres --init-groups)
  fi
  (cd / && setpriv "${as_user[@]}" -- "$bin/initdb" -D "$dir/postgres" --username=postgres --auth=trust \
    --encoding=UTF8 --locale=C --no-sync > "$dir/initdb.log" 2>&1) || fail "initdb failed" "$dir/initdb.log"
  (cd / && exec setpriv "${as_user[@]}" --pdeathsig INT -- "$bin/postgres" -D "$dir/postgres" -c port="$port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 -c shared_buffers=128MB \
    -c max_wal_size=2GB > "$dir/postgres.log" 2>&1) &
  pids+=($!)
  export DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres"
  wait_for "PostgreSQL" "$dir/postgres.log" psql -XqAtc 'select 1' "$DATABASE_URL"
}

start_redis() {
  local program port
  port="$(free_port)"
  program="$(command -v redis-server || true)"
  if [ -z "$program" ]; then
    # One program that looks at its own name.
    ln -s "$(command -v redis-check-rdb)" "$dir/redis-server"
    program="$dir/redis-server"
  fi
  setpriv --pdeathsig TERM -- "$program" --port "$port" --bind 127.0.0.1 --save '' --appendonly no \
    > "$dir/redis.log" 2>&1 &
  pids+=($!)
  export REDIS_URL="redis://127.0.0.1:$port/"
  wait_for "Redis" "$dir/redis.log" bash -c "exec 3<> /dev/tcp/127.0.0.1/$port"
}

wait_for() { # name log command...
  local name="$1" log="$2" deadline=$((SECONDS + 60))
  shift 2
  until "$@" > /dev/null 2>&1; do
    kill -0 "${pids[-1]}" 2> /dev/null || fail "$name ended at once" "$log"
    [ "$SECONDS" -lt "$deadline" ] || fail "$name is not ready after a minute" "$log"
    sleep 0.1
  done
}

start_postgres
start_redis
"$@"
