//! The load that the measurements share: events of about 330 bytes with random UUIDs, three in ten of them re-sends.

/// Of a hundred events, this many are one that was sent before.
const DUPLICATE_PERCENT: u64 = 30;
/// A re-send repeats one of this many newest events, so that on a large store it is mostly not in the newest part.
const DUPLICATE_WINDOW: u64 = 2_000_000;

/// Makes events, always the same ones from the same seed.
pub(crate) struct Load {
    random: Random,
    topics: u64,
    seed: u64,
    made: u64,
}

/// An event to send; all texts but the payload need no escaping.
pub(crate) struct Event {
    /// One of the load's topics.
    pub(crate) topic: String,
    /// A UUID.
    pub(crate) event_id: String,
    /// RFC 3339 in UTC.
    pub(crate) timestamp: String,
    /// Always the same.
    pub(crate) source: &'static str,
    /// JSON text.
    pub(crate) payload: String,
}

impl Load {
    /// Another `seed` makes other events. `topics` are used in turn.
    pub(crate) fn new(seed: u64, topics: u64) -> Self {
        Self {
            random: Random(seed ^ 0x006f_6e63_656c_6f67),
            topics,
            seed,
            made: 0,
        }
    }

    /// How many different events it has made.
    pub(crate) fn unique(&self) -> u64 {
        self.made
    }

    /// The next `count` events.
    pub(crate) fn batch(&mut self, count: usize) -> Vec<Event> {
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Event {
        let again = self.made > 0 && self.random.below(100) < DUPLICATE_PERCENT;
        let number = if again {
            self.made - 1 - self.random.below(self.made.min(DUPLICATE_WINDOW))
        } else {
            self.made += 1;
            self.made - 1
        };
        self.event(number)
    }

    fn event(&self, number: u64) -> Event {
        // A generator of its own makes an event the same however often it is made.
        let mut random = Random(self.seed.wrapping_add(number).wrapping_mul(0xd134_2543_de82_ef95));
        let (high, low) = (random.next(), random.next());
        Event {
            topic: format!("service-{}.events", number % self.topics),
            event_id: format!(
                "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
                high >> 32,
                (high >> 16) & 0xffff,
                high & 0xfff,
                (low >> 48) & 0x3fff | 0x8000,
                low & 0xffff_ffff_ffff
            ),
            timestamp: format!(
                "2025-10-{:02}T{:02}:{:02}:{:02}Z",
                1 + number / 86_400 % 28,
                number / 3_600 % 24,
                number / 60 % 60,
                number % 60
            ),
            source: "order-service",
            payload: format!(
                r#"{{"customer":{},"step":"checkout","total":{}.95,"currency":"EUR","address":"10.1.{}.{}","trace":"{:016x}{:016x}","note":"order {number} was taken by the payment gateway"}}"#,
                number % 90_000,
                number % 991,
                number % 250,
                number % 19,
                random.next(),
                low
            ),
        }
    }
}

impl Event {
    /// As the JSON that a producer would send.
    pub(crate) fn json(&self) -> String {
        let Self {
            topic,
            event_id,
            timestamp,
            source,
            payload,
        } = self;
        format!(
            r#"{{"topic":"{topic}","event_id":"{event_id}","timestamp":"{timestamp}","source":"{source}","payload":{payload}}}"#
        )
    }
}

/// The `SplitMix64` generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
