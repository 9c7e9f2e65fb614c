#!/usr/bin/env bash
# Runs a command with a throw-away PostgreSQL on a free port of loopback; DATABASE_URL says where. It ends, and its data
# go, with the command.
#
#   with-postgres.sh cargo nextest run -p relay-store
set -euo pipefail

dir="$(mktemp -d)"
chmod 711 "$dir"
pid=""
as_user=()

finish() {
  if [ -n "$pid" ]; then
    kill -INT "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
  fi
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
  pid=$!
  export DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres"
  local deadline=$((SECONDS + 60))
  until psql -XqAtc 'select 1' "$DATABASE_URL" > /dev/null 2>&1; do
    kill -0 "$pid" 2> /dev/null || fail "PostgreSQL ended at once" "$dir/postgres.log"
    [ "$SECONDS" -lt "$deadline" ] || fail "PostgreSQL is not ready after a minute" "$dir/postgres.log"
    sleep 0.1
  done
}

start_postgres
"$@"
