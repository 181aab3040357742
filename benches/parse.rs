//! What parsing costs an event: bodies of 200 events of about 330 bytes, and single events.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use oncelog::event::{Fingerprint, Identity, Instant, Shape, parse};
use std::hint::black_box;

const IDENTITY: Identity = Identity {
    store: 1,
    secret: [7; 16],
};
const BATCH_EVENTS: u64 = 200;

/// An event such as a shop's services send: a UUID, a time in whole seconds, seven fields of payload.
fn event(number: u64) -> String {
    let mut random = fastrand::Rng::with_seed(number);
    let uuid = format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        random.u32(..),
        random.u16(..),
        random.u16(..4096),
        random.u16(..4096),
        random.u64(..1 << 48)
    );
    let (topic, user, order) = (number % 10, number % 100_000, number);
    let (minute, second) = (number / 60 % 60, number % 60);
    let (amount, address, trace) = (number % 997, number % 255, random.u128(..));
    format!(
        r#"{{"topic":"service-{topic}.events","event_id":"{uuid}","timestamp":"2025-10-23T10:{minute:02}:{second:02}Z","source":"order-service","payload":{{"user_id":{user},"action":"checkout","amount":{amount}.99,"currency":"USD","ip":"192.168.{address}.7","trace":"{trace:032x}","message":"order {order} accepted by payment gateway"}}}}"#
    )
}

fn benchmarks(criterion: &mut Criterion) {
    let events: Vec<_> = (0..BATCH_EVENTS).map(event).collect();
    let body = format!(r#"{{"events":[{}]}}"#, events.join(",")).into_bytes();
    let parsed = |body| parse(body, Shape::Any, &IDENTITY, 10_000).map(|batch| batch.len());

    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(BATCH_EVENTS));
    group.bench_function("batch of 200", |bencher| {
        bencher.iter_batched(|| body.clone(), parsed, BatchSize::SmallInput);
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("one event", |bencher| {
        let body = events[0].clone().into_bytes();
        bencher.iter_batched(|| body.clone(), parsed, BatchSize::SmallInput);
    });
    group.finish();

    let payload = events[0]
        .split_once(r#""payload":"#)
        .map_or("{}", |(_, rest)| &rest[..rest.len() - 1]);
    let mut group = criterion.benchmark_group("parts");
    group.bench_function("fingerprint", |bencher| {
        bencher.iter(|| Fingerprint::of(black_box(payload)).map_err(|error| error.place));
    });
    group.bench_function("key", |bencher| {
        bencher.iter(|| IDENTITY.key(black_box("service-3.events"), black_box(&events[0][35..71])));
    });
    group.bench_function("timestamp", |bencher| {
        bencher.iter(|| Instant::parse(black_box("2025-10-23T10:00:00.123Z")));
    });
    group.finish();
}

criterion_group!(parse_benches, benchmarks);
criterion_main!(parse_benches);
