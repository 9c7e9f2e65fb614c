#!/usr/bin/env bash
# The committed query data of relay-store (.sqlx), by which it compiles without a database.
#
#   sqlx.sh write   makes them anew
#   sqlx.sh check   fails when they are not what the migrations and queries give
#
# The macros of sqlx write a file for each query that they check against a database when SQLX_OFFLINE_DIR is set, so all
# that is needed is a migrated database and one `cargo check` in which the crate is compiled.
set -euo pipefail
cd "$(dirname "$0")/.."

committed=shared/relay-store/.sqlx

if [ "${2:-}" != inside ]; then
  case "${1:-}" in
    write | check) exec .ci/with-postgres.sh "$0" "$1" inside ;;
    *) echo "usage: $0 write|check" >&2; exit 2 ;;
  esac
fi

fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
for migration in migrations/*.sql; do
  psql -XqAt -v ON_ERROR_STOP=1 --single-transaction -f "$migration" "$DATABASE_URL" > /dev/null
done
# Only a crate that is compiled runs its macros.
touch shared/relay-store/src/lib.rs
SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$fresh" cargo check --quiet --locked -p relay-store --all-targets
touch shared/relay-store/src/lib.rs

if [ "$1" = write ]; then
  mkdir -p "$committed"
  rm -f "$committed"/query-*.json
  cp "$fresh"/query-*.json "$committed/"
  echo "$(find "$committed" -name 'query-*.json' | wc -l) queries written to $committed"
elif ! diff -r "$fresh" "$committed" > "$fresh.diff"; then
  head -n 40 "$fresh.diff" >&2
  rm -f "$fresh.diff"
  echo "error: $committed is not what the queries and migrations give. Run 'make sqlx' and commit the result." >&2
  exit 1
else
  rm -f "$fresh.diff"
fi
