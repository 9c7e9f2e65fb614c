#!/usr/bin/env bash
# The whole suite, in the order in which a mistake is cheapest to see. The summary of the tests is the last output.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$PATH" SQLX_OFFLINE=true

step() { printf '\n== %s\n' "$*"; }

step "tools and servers"
.ci/install.sh tests

step "format"
cargo fmt --all --check

step "clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

step "dependencies: who may use what, licences, sources"
cargo deny --locked check --hide-inclusion-graph --allow duplicate bans licenses sources

step "query data"
.ci/sqlx.sh check

step "programs for the black-box tests"
cargo build --workspace --bins --locked

# Two tests fill a disk of their own, which takes the right to mount one.
chosen=()
if ! unshare -m mount -t tmpfs relay-test /mnt 2> /dev/null; then
  step "WARNING: what happens on a full disk is NOT tested: nothing can be mounted here (it takes root, or CAP_SYS_ADMIN)"
  chosen=(-E 'not test(/^disk_full::/)')
fi

step "tests: unit, property, simulation, black box"
exec .ci/with-postgres.sh cargo nextest run --workspace --locked --profile ci "${chosen[@]}"
