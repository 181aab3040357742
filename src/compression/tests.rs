use super::{BodyCoding, Coding, DecodeError};
use flate2::{Compression, write::GzEncoder};
use proptest::{collection::vec, prelude::*};
use std::io::Write;

const CODINGS: [(Coding, BodyCoding); 2] =
    [(Coding::Gzip, BodyCoding::Gzip), (Coding::Zstd, BodyCoding::Zstd)];
const MOST: usize = 1 << 20;

fn encoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
    coding.encode(bytes).expect("memory can be written to")
}

/// Texts as bodies are, and noise.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..5_000),
        (vec(b'a'..b'e', 1..300), 0_usize..400).prop_map(|(text, times)| text.repeat(times)),
    ]
}

proptest! {
    #[test]
    fn what_was_compressed_in_parts_comes_back_whole(parts in vec(bytes(), 1..4)) {
        for (coding, body) in CODINGS {
            let packed: Vec<u8> = parts.iter().flat_map(|part| encoded(coding, part)).collect();
            let whole = parts.concat();
            prop_assert_eq!(body.decode(&packed, MOST), Ok(whole.clone()));
            prop_assert_eq!(body.decode(&packed, whole.len()), Ok(whole.clone()), "it fits exactly");
            if let Some(less) = whole.len().checked_sub(1) {
                prop_assert_eq!(body.decode(&packed, less), Err(DecodeError::TooLarge));
            }
        }
    }

    #[test]
    fn a_part_of_it_is_refused(bytes in bytes(), keep in 0.0..1.0_f64) {
        for (coding, body) in CODINGS {
            let mut packed = encoded(coding, &bytes);
            packed.truncate((packed.len() as f64 * keep) as usize);
            prop_assert_eq!(body.decode(&packed, MOST), Err(DecodeError::CutOff));
        }
    }

    #[test]
    fn whatever_comes_is_an_error_or_within_the_bound(bytes in vec(any::<u8>(), 0..300), place in any::<prop::sample::Index>(), bit in 0..8_u32) {
        for (coding, body) in CODINGS {
            prop_assert!(body.decode(&bytes, 0).is_err());
            let mut packed = encoded(coding, &bytes);
            let changed = place.index(packed.len());
            packed[changed] ^= 1_u8 << bit;
            if let Ok(decoded) = body.decode(&packed, 400) {
                prop_assert!(decoded.len() <= 400);
            }
        }
    }
}

#[test]
fn a_changed_byte_does_not_pass_the_checksum() {
    let mut packed = encoded(Coding::Gzip, b"hello");
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    let error = BodyCoding::Gzip.decode(&packed, MOST).expect_err("it is damaged");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn something_else_behind_it_is_refused() {
    for (coding, body) in CODINGS {
        let packed = [
            encoded(coding, b"hello"),
            b"something else, and more of it".to_vec(),
        ]
        .concat();
        assert!(matches!(body.decode(&packed, MOST), Err(DecodeError::Broken(_))));
    }
}

#[test]
fn what_is_of_another_coding_is_refused() {
    for (coding, body) in [(Coding::Gzip, BodyCoding::Zstd), (Coding::Zstd, BodyCoding::Gzip)] {
        for packed in [encoded(coding, b"hello"), br#"{"topic":"t"}"#.to_vec()] {
            assert!(matches!(body.decode(&packed, MOST), Err(DecodeError::Broken(_))));
        }
    }
}

#[test]
fn skippable_frames_are_skipped() {
    let skippable = [0x184D_2A57_u32.to_le_bytes(), 3_u32.to_le_bytes()].concat();
    let packed = [
        skippable.clone(),
        b"abc".to_vec(),
        encoded(Coding::Zstd, b"hello"),
    ]
    .concat();
    assert_eq!(BodyCoding::Zstd.decode(&packed, MOST), Ok(b"hello".to_vec()));
    let cut = [encoded(Coding::Zstd, b"hello"), skippable].concat();
    assert_eq!(BodyCoding::Zstd.decode(&cut, MOST), Err(DecodeError::CutOff));
}

#[test]
fn a_window_beyond_what_http_allows_is_refused() {
    // A frame of one byte that asks for a window: its magic, its descriptor, its window, and a last raw block.
    let frame = |window: u8| {
        let [low, middle, high, _] = (1_u32 << 3 | 1).to_le_bytes();
        [0x28, 0xB5, 0x2F, 0xFD, 0, window, low, middle, high, b'x']
    };
    let log = |log: u8| (log - 10) << 3;
    assert_eq!(BodyCoding::Zstd.decode(&frame(log(23)), MOST), Ok(b"x".to_vec()));
    assert_eq!(
        BodyCoding::Zstd.decode(&frame(log(23) + 1), MOST),
        Err(DecodeError::Window { bytes: 9 << 20 })
    );
    assert_eq!(
        BodyCoding::Zstd.decode(&frame(log(41)), MOST),
        Err(DecodeError::Window { bytes: 1 << 41 })
    );
}

#[test]
fn what_a_body_says_of_its_size_is_known_beforehand() {
    for (coding, body) in CODINGS {
        assert_eq!(
            body.announced_bytes(&encoded(coding, &[b'x'; 3_000])),
            Some(3_000)
        );
        assert_eq!(body.announced_bytes(b""), None);
    }
    // More than deflate could make of it: the end of something else.
    assert_eq!(BodyCoding::Gzip.announced_bytes(&[0xff; 100]), None);
}

#[test]
fn a_gzip_member_of_any_level_is_read() {
    let text = b"one line of it\n".repeat(1_000);
    for level in 0..=9 {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(&text).expect("memory can be written to");
        let packed = encoder.finish().expect("memory can be written to");
        assert_eq!(
            BodyCoding::Gzip.decode(&packed, MOST).as_ref(),
            Ok(&text),
            "level {level}"
        );
    }
}
