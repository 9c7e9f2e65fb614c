# `make help` lists what there is. Everything lies below this directory: target/ (builds), .tools/ (programs that are
# fetched), .relay/ (data of the private servers).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Queries are checked against the committed data in shared/relay-store/.sqlx; `make sqlx` makes them anew.
export SQLX_OFFLINE := true
export PATH := $(CURDIR)/.tools/bin:$(PATH)

SEEDS ?= 10000
SECONDS ?= 600
SEED ?= 1
FAULTS ?= all
ARGS ?=

.PHONY: help up down logs build test bench bench-lists soak fuzz simulate chaos fmt lint sqlx compose-env clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: build ## Install what is missing, build, and run everything on this machine (Ctrl-C ends it)
	@exec target/release/webhook-relay up $(ARGS)

down: ## End a running `make up`
	@.ci/down.sh

logs: ## Follow the logs of the private servers
	@tail -n 50 -F .relay/logs/*.log

build: ## Only install and build: target/release/webhook-relay, .tools/nats-server
	@.ci/install.sh servers
	cargo build --release --locked -p webhook-relay

test: ## The whole suite, as continuous integration runs it
	@.ci/test.sh

bench: build ## Measure this machine (ARGS="--seconds 60 --runs 3")
	cargo build --release --locked -p bench
	target/release/bench --binary target/release/webhook-relay $(ARGS)

bench-lists: build ## Measure lists on a ledger of 10 million events (ARGS="--events 1000000"; needs some 15 GB of disk)
	cargo build --release --locked -p bench
	target/release/bench lists --binary target/release/webhook-relay $(ARGS)

soak: build ## Measure whether all stays as it is under a steady load (ARGS="--minutes 20")
	cargo build --release --locked -p bench
	target/release/bench soak --binary target/release/webhook-relay $(ARGS)

fuzz: ## Feed every parser with what nobody should send (SECONDS=60 for each; SEED=1 repeats a run)
	FUZZ_SECONDS=$(if $(filter file,$(origin SECONDS)),60,$(SECONDS)) FUZZ_SEED=$(if $(filter file,$(origin SEED)),,$(SEED)) \
	  cargo nextest run --locked --profile fuzz

simulate: ## Run the protocol against misbehaving servers (SEEDS=1000000)
	SIM_SEEDS=$(SEEDS) cargo test --release --locked -p relay-core --test simulation -- --nocapture

chaos: build ## Hurt a whole system and compare the books (SECONDS=600 SEED=1 FAULTS=all; FAULTS=help lists them)
	cargo build --release --locked -p chaos -p ingest -p dispatcher -p deliverer -p dlq-manager --bins
	target/release/chaos --seconds $(SECONDS) --seed $(SEED) --faults $(FAULTS) $(ARGS)

fmt: ## Format the code
	cargo fmt --all

lint: ## Format check, clippy, dependency rules
	@.ci/install.sh tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo deny --locked check --hide-inclusion-graph --allow duplicate bans licenses sources

sqlx: ## Make the committed query data anew (after a change of SQL or migrations)
	@.ci/sqlx.sh write

compose-env: ## Generate the passwords that `docker compose up` needs into .env
	@.ci/compose-env.sh

clean: ## Remove builds and fetched programs; the data in .relay/ stay
	cargo clean
	rm -rf .tools
