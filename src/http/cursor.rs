//! Cursors: positions in the log or in the list of topics, as opaque texts.
//!
//! A cursor is base64url without padding of
//! `version (1) | kind (1) | store (8) | position | seal (8)`, numbers big-endian. A position is `branch (8) | seq (8)`, or a
//! topic's name. The seal is a keyed hash with the store's secret over all before it, so that only positions that were
//! given out are taken back. The branch is that of the seq in the store's history: a cursor from after a backup does not
//! fit the store that was restored from it, where other events have these seqs.

use super::error::{Kind, Problem};
use crate::{
    event::{Identity, Seq},
    limits::MAX_NAME_CHARS,
    store::{Branch, Order, branch_of},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

const VERSION: u8 = 1;
const KIND_DESCENDING: u8 = 0;
const KIND_ASCENDING: u8 = 1;
const KIND_TOPICS: u8 = 2;
const HEAD_BYTES: usize = 10;
const SEAL_BYTES: usize = 8;
/// The longest cursor: a topic of [`MAX_NAME_CHARS`] characters of 4 bytes each, in base64.
const MAX_CURSOR_CHARS: usize = (HEAD_BYTES + MAX_NAME_CHARS * 4 + SEAL_BYTES).div_ceil(3) * 4;

/// Makes and reads the cursors of one store.
#[derive(Debug)]
pub(crate) struct Cursors {
    identity: Identity,
    branches: Vec<Branch>,
}

/// A position in the log that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The direction in which it goes on.
    pub(crate) order: Order,
    /// Everything up to it, in its direction, has been given out.
    pub(crate) seq: Seq,
}

impl Cursors {
    /// For the store with this identity and history.
    pub(crate) fn new(identity: Identity, branches: &[Branch]) -> Self {
        Self {
            identity,
            branches: branches.to_vec(),
        }
    }

    /// The cursor of a position in the log.
    pub(crate) fn events(&self, position: Position) -> String {
        let kind = match position.order {
            Order::Ascending => KIND_ASCENDING,
            Order::Descending => KIND_DESCENDING,
        };
        let body = [self.branch_of(position.seq), position.seq].map(u64::to_be_bytes);
        self.seal(kind, body.as_flattened())
    }

    /// The cursor of the topics after `topic`.
    pub(crate) fn topics(&self, topic: &str) -> String {
        self.seal(KIND_TOPICS, topic.as_bytes())
    }

    /// The position in the log that a cursor stands for.
    pub(crate) fn read_events(&self, cursor: &str) -> Result<Position, Problem> {
        let (kind, body) = self.open(cursor)?;
        let order = match kind {
            KIND_ASCENDING => Order::Ascending,
            KIND_DESCENDING => Order::Descending,
            _ => return Err(invalid("it is a cursor of GET /topics, not of GET /events")),
        };
        let (branch, seq) = body.split_first_chunk().ok_or_else(made_up)?;
        let seq = Seq::from_be_bytes(seq.try_into().map_err(|_| made_up())?);
        if u64::from_be_bytes(*branch) != self.branch_of(seq) {
            return Err(invalid(
                "the store was restored from a backup that is older than it, or it is from a restored copy: other events \
                 have its seqs here. Go on from a cursor of before the backup, or from the start",
            ));
        }
        Ok(Position { order, seq })
    }

    /// The topic that a cursor of the list of topics stands for.
    pub(crate) fn read_topics(&self, cursor: &str) -> Result<String, Problem> {
        let (kind, body) = self.open(cursor)?;
        if kind != KIND_TOPICS {
            return Err(invalid("it is a cursor of GET /events, not of GET /topics"));
        }
        String::from_utf8(body).map_err(|_| made_up())
    }

    fn branch_of(&self, seq: Seq) -> u64 {
        branch_of(&self.branches, seq).map_or(0, |branch| branch.id)
    }

    fn seal(&self, kind: u8, body: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + SEAL_BYTES);
        bytes.push(VERSION);
        bytes.push(kind);
        bytes.extend_from_slice(&self.store());
        bytes.extend_from_slice(body);
        let seal = self.seal_of(&bytes);
        bytes.extend_from_slice(&seal);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn open(&self, cursor: &str) -> Result<(u8, Vec<u8>), Problem> {
        if cursor.len() > MAX_CURSOR_CHARS {
            return Err(made_up());
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| made_up())?;
        if bytes.len() < HEAD_BYTES + SEAL_BYTES || bytes[0] != VERSION {
            return Err(made_up());
        }
        if bytes[2..HEAD_BYTES] != self.store() {
            return Err(invalid("it is of another store"));
        }
        let seal = bytes.split_off(bytes.len() - SEAL_BYTES);
        if seal != self.seal_of(&bytes) {
            return Err(made_up());
        }
        Ok((bytes[1], bytes.split_off(HEAD_BYTES)))
    }

    fn store(&self) -> [u8; 8] {
        (self.identity.store as u64).to_be_bytes()
    }

    /// The text in front keeps seals apart from all other hashes with the same secret.
    fn seal_of(&self, bytes: &[u8]) -> [u8; SEAL_BYTES] {
        let mut hasher = SipHasher13::new_with_key(&self.identity.secret);
        hasher.write(b"oncelog cursor");
        hasher.write(bytes);
        hasher.finish().to_be_bytes()
    }
}

/// A problem with a cursor; `message` goes on after its name.
pub(crate) fn invalid(message: impl std::fmt::Display) -> Problem {
    Problem::at(Kind::InvalidCursor, "cursor", format!("cursor: {message}"))
}

fn made_up() -> Problem {
    invalid("it is none that this server gave out; use `next` of an answer as it is")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursors(store: u128, secret: u8) -> Cursors {
        let identity = Identity {
            store,
            secret: [secret; 16],
        };
        Cursors::new(identity, &[Branch { first: 1, id: 5 }])
    }

    fn order() -> impl Strategy<Value = Order> {
        prop_oneof![Just(Order::Ascending), Just(Order::Descending)]
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_its_position(order in order(), seq: u64, topic in ".{1,255}") {
            let cursors = cursors(7, 1);
            let position = Position { order, seq };
            prop_assert_eq!(cursors.read_events(&cursors.events(position)).expect("own cursor"), position);
            prop_assert_eq!(cursors.read_topics(&cursors.topics(&topic)).expect("own cursor"), topic);
        }

        #[test]
        fn a_changed_character_is_noticed(order in order(), seq: u64, place in 0_usize..35, other in "[A-Za-z0-9_-]") {
            let cursors = cursors(7, 1);
            let cursor = cursors.events(Position { order, seq });
            let mut changed = cursor.clone();
            changed.replace_range(place..=place, &other);
            prop_assume!(changed != cursor);
            prop_assert!(cursors.read_events(&changed).is_err());
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,60}") {
            prop_assert!(cursors(7, 1).read_events(&text).is_err());
            prop_assert!(cursors(7, 1).read_topics(&text).is_err());
        }
    }

    #[test]
    fn a_cursor_from_after_a_backup_does_not_fit_what_was_restored_from_it() {
        let original = cursors(7, 1);
        let old = Branch { first: 1, id: 5 };
        let restored = Cursors::new(original.identity, &[old, Branch { first: 11, id: 6 }]);
        let order = Order::Ascending;
        for seq in 0..=10 {
            let position = Position { order, seq };
            assert_eq!(
                restored.read_events(&original.events(position)).expect("shared"),
                position
            );
            assert_eq!(
                original.read_events(&restored.events(position)).expect("shared"),
                position
            );
        }
        for seq in [11, 12, 1_000_000] {
            let position = Position { order, seq };
            for (from, to) in [(&original, &restored), (&restored, &original)] {
                let problem = to
                    .read_events(&from.events(position))
                    .expect_err("another history");
                assert!(
                    format!("{problem:?}").contains("restored from a backup"),
                    "{problem:?}"
                );
                assert_eq!(
                    from.read_events(&from.events(position)).expect("own cursor"),
                    position
                );
            }
        }
    }

    #[test]
    fn a_cursor_of_another_store_says_so() {
        let cursor = cursors(8, 1).events(Position {
            order: Order::Ascending,
            seq: 1,
        });
        let problem = cursors(7, 1).read_events(&cursor).expect_err("another store");
        assert!(format!("{problem:?}").contains("of another store"), "{problem:?}");
    }

    #[test]
    fn a_cursor_sealed_with_another_secret_is_made_up() {
        let cursor = cursors(7, 2).events(Position {
            order: Order::Ascending,
            seq: 1,
        });
        let problem = cursors(7, 1).read_events(&cursor).expect_err("another secret");
        assert!(
            format!("{problem:?}").contains("none that this server gave out"),
            "{problem:?}"
        );
    }

    #[test]
    fn kinds_of_cursors_do_not_mix() {
        let cursors = cursors(7, 1);
        assert!(
            cursors
                .read_topics(&cursors.events(Position {
                    order: Order::Ascending,
                    seq: 1
                }))
                .is_err()
        );
        assert!(cursors.read_events(&cursors.topics("12345678")).is_err());
    }
}
