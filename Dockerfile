# All programs in one image; docker-compose.yml says which one a container runs. Needs BuildKit (the default since Docker 23).

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ENV SQLX_OFFLINE=true
# Dependencies and their builds stay in the two caches: after a change of ours only our crates are compiled.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p ingest -p dispatcher -p deliverer -p dlq-manager -p webhook-relay \
    && mkdir /out \
    && cd target/release \
    && cp ingest dispatcher deliverer dlq-manager webhook-relay /out/

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/webhook-relay --create-home --shell /usr/sbin/nologin relay
COPY --from=build /out/ /usr/local/bin/
USER relay
WORKDIR /var/lib/webhook-relay
VOLUME /var/lib/webhook-relay
ENV RELAY_LOG_FORMAT=json
CMD ["webhook-relay", "--help"]
