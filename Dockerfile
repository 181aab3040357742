# syntax=docker/dockerfile:1
# docker build --build-arg REVISION="$(git rev-parse --short=12 HEAD)" --tag oncelog .

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build

# The dependencies, in a layer that stays until Cargo.toml or Cargo.lock changes. The stubs are what Cargo.toml names.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src benches tests/faults \
    && touch src/lib.rs \
    && for stub in src/main.rs benches/parse.rs tests/faults/main.rs; do echo 'fn main() {}' >"$stub"; done
COPY scripts/release scripts/release
# What was made of the stubs goes: the files that replace them may well be older.
RUN cargo fetch --locked \
    && scripts/release \
    && cargo clean --release --package oncelog

COPY build.rs ./
COPY src src
# The repository is not in here, so the commit is told.
ARG REVISION=
# Without the line numbers for profilers, which are three quarters of it.
RUN ONCELOG_COMMIT="$REVISION" scripts/release \
    && strip --strip-debug target/release/oncelog


FROM debian:12.15-slim
ARG REVISION=
LABEL org.opencontainers.image.title="oncelog" \
      org.opencontainers.image.description="A log aggregator that stores every event exactly once, however often it is sent" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="MIT"

# By number, so that Kubernetes can tell that it is not root. A new volume takes the owner of the folder it covers.
RUN groupadd --gid 10001 oncelog \
    && useradd --uid 10001 --gid oncelog --home-dir /app --no-create-home --shell /usr/sbin/nologin oncelog \
    && install --directory --owner=oncelog --group=oncelog --mode=0750 /app/data
COPY --from=build /build/target/release/oncelog /usr/local/bin/oncelog

USER 10001:10001
WORKDIR /app
VOLUME /app/data
# A container is reached from outside of it, or not at all.
ENV HOST=0.0.0.0 \
    PORT=8080 \
    DATABASE_PATH=/app/data/dedup.db
EXPOSE 8080
# SIGTERM answers what was taken in within ten seconds, and copies the write-ahead log back: give it 30 to stop.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "exec oncelog health --url http://127.0.0.1:$PORT"]
ENTRYPOINT ["oncelog"]
CMD ["serve"]
