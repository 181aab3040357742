//! Decompresses bodies that came compressed.
//!
//! First within the room that the body says it needs, or that of a small one. When it becomes larger, that is given up,
//! and it is done again within the room of the largest: it costs time, but nothing is held while waiting for more.

use super::{BodyRoom, Patience, take};
use crate::{
    compression::{BodyCoding, DecodeError},
    http::{
        beside,
        error::{Kind, Problem},
        room::units_of,
    },
    limits::{LARGE_BODY_BYTES, MAX_BODY_BYTES, PARSE_INLINE_BYTES},
};
use tokio::sync::OwnedSemaphorePermit;

/// A body as it came, and its room.
struct Packed {
    coding: BodyCoding,
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl BodyRoom {
    /// What a body becomes; the permit is the room that it takes then. Its room from before is given back.
    pub(crate) async fn decompress(
        &self,
        coding: BodyCoding,
        bytes: Vec<u8>,
        room: OwnedSemaphorePermit,
        patience: Patience,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        let most = most(coding, &bytes)?;
        let packed = Packed {
            coding,
            bytes,
            _room: room,
        };
        match self.decode(packed, most, patience).await? {
            (packed, Err(DecodeError::TooLarge)) if most < MAX_BODY_BYTES => {
                let (packed, result) = self.decode(packed, MAX_BODY_BYTES, patience).await?;
                result.map_err(|error| problem(packed.coding, &error))
            }
            (packed, result) => result.map_err(|error| problem(packed.coding, &error)),
        }
    }

    /// Decompresses to at most `most` bytes.
    async fn decode(&self, packed: Packed, most: usize, patience: Patience) -> Result<Attempt, Problem> {
        let share = match most {
            ..=LARGE_BODY_BYTES => &self.small_decompressed,
            _ => &self.large_decompressed,
        };
        let room = take(share, most, patience).await?;
        if packed.bytes.len().max(most) <= PARSE_INLINE_BYTES {
            return Ok(packed.decode(most, room));
        }
        // The rooms go with the work: it goes on when the client has left, and so does the memory that it takes.
        let work = move || packed.decode(most, room);
        beside(work, "decompressing a body", "the body could not be decompressed").await
    }
}

/// What came of it, and the body for another one.
type Attempt = (Packed, Result<(Vec<u8>, OwnedSemaphorePermit), DecodeError>);

impl Packed {
    fn decode(self, most: usize, mut room: OwnedSemaphorePermit) -> Attempt {
        let result = self.coding.decode(&self.bytes, most).map(|bytes| {
            let surplus = room.num_permits().saturating_sub(units_of(bytes.capacity()));
            drop(room.split(surplus));
            (bytes, room)
        });
        (self, result)
    }
}

/// The bytes that a body is given at first.
fn most(coding: BodyCoding, body: &[u8]) -> Result<usize, Problem> {
    match coding.announced_bytes(body) {
        None => Ok(LARGE_BODY_BYTES),
        Some(bytes) if bytes <= MAX_BODY_BYTES as u64 => Ok(bytes as usize),
        Some(_) => match coding {
            // It may as well be damaged.
            BodyCoding::Gzip => Ok(MAX_BODY_BYTES),
            BodyCoding::Zstd => Err(problem(coding, &DecodeError::TooLarge)),
        },
    }
}

fn problem(coding: BodyCoding, error: &DecodeError) -> Problem {
    match error {
        DecodeError::TooLarge => Problem::new(
            Kind::BodyTooLarge,
            format!(
                "a request body may have at most {MAX_BODY_BYTES} bytes, and this one has more once it is decompressed"
            ),
        ),
        DecodeError::CutOff | DecodeError::Broken(_) | DecodeError::Window { .. } => Problem::new(
            Kind::BrokenCompression,
            format!("the body cannot be decompressed as {}: {error}", coding.name()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compression::Coding, http::testing::Chunks};
    use axum::{body::Body, response::IntoResponse};
    use proptest::{collection::vec, prelude::*};
    use std::time::Duration;

    const PATIENCE: Patience = Patience {
        read: Duration::from_secs(60),
        room: Duration::from_secs(60),
    };

    fn room() -> BodyRoom {
        BodyRoom::new(Duration::from_secs(60))
    }

    fn encoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        coding.encode(bytes).expect("memory can be written to")
    }

    async fn read(
        room: &BodyRoom,
        coding: BodyCoding,
        chunks: Vec<Vec<u8>>,
    ) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        let chunks: Vec<_> = chunks.into_iter().map(Ok).collect();
        let (bytes, held) = room.read(Body::new(Chunks(chunks.into_iter())), PATIENCE).await?;
        room.decompress(coding, bytes, held, PATIENCE).await
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_body_that_comes_in_parts_of_any_size_comes_back_whole(
            bytes in prop_oneof![vec(any::<u8>(), 0..3_000), vec(any::<u8>(), 1..2_000).prop_map(|part| part.repeat(300))],
            size in 1_usize..5_000,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            for (coding, body) in [(Coding::Gzip, BodyCoding::Gzip), (Coding::Zstd, BodyCoding::Zstd)] {
                let room = room();
                let chunks = encoded(coding, &bytes).chunks(size).map(<[u8]>::to_vec).collect();
                let (whole, held) = runtime
                    .block_on(read(&room, body, chunks))
                    .map_err(|problem| TestCaseError::fail(format!("{problem:?}")))?;
                prop_assert_eq!(&whole, &bytes);
                prop_assert!(whole.capacity() <= room.used_bytes(), "what it holds is counted");
                prop_assert!(room.used_bytes() < whole.len() + 2 * crate::limits::ROOM_UNIT_BYTES, "and nothing else");
                drop(held);
                prop_assert_eq!(room.used_bytes(), 0);
            }
        }
    }

    #[tokio::test]
    async fn what_becomes_larger_than_it_says_has_room_all_the_same() {
        // The last member says that it has one byte.
        let text = vec![b'x'; 4 * LARGE_BODY_BYTES];
        let packed = [encoded(Coding::Gzip, &text), encoded(Coding::Gzip, b"y")].concat();
        let room = room();
        let (whole, held) = read(&room, BodyCoding::Gzip, vec![packed])
            .await
            .unwrap_or_else(|problem| panic!("{problem:?}"));
        assert_eq!(whole.len(), text.len() + 1);
        assert!(whole.capacity() <= room.used_bytes());
        assert!(
            room.used_bytes() < whole.len() + 2 * crate::limits::ROOM_UNIT_BYTES,
            "the rest is given back"
        );
        drop((whole, held));
        assert_eq!(room.used_bytes(), 0);
    }

    #[tokio::test]
    async fn what_becomes_too_large_is_refused_and_holds_nothing() {
        let largest = vec![b' '; MAX_BODY_BYTES];
        for (coding, body) in [(Coding::Gzip, BodyCoding::Gzip), (Coding::Zstd, BodyCoding::Zstd)] {
            let room = room();
            let fits = encoded(coding, &largest);
            let (whole, _) = read(&room, body, vec![fits.clone()])
                .await
                .unwrap_or_else(|problem| panic!("{problem:?}"));
            assert_eq!(whole.len(), MAX_BODY_BYTES);
            let one_more = [fits, encoded(coding, b" ")].concat();
            let problem = read(&room, body, vec![one_more]).await.err();
            let response = problem.map(IntoResponse::into_response);
            assert_eq!(response.map(|response| response.status().as_u16()), Some(413));
            assert_eq!(room.used_bytes(), 0);
        }
    }
}
