//! What has to hold for whatever comes as a compressed body. Shared by the fuzz target and the test that replays its
//! corpus.

use oncelog::compression::{BodyCoding, DecodeError};

/// Decompresses the bytes in each coding and panics when a promise of [`BodyCoding::decode`] is broken.
pub(crate) fn check(body: &[u8]) {
    const MOST: usize = 1 << 20;
    for coding in [BodyCoding::Gzip, BodyCoding::Zstd] {
        // Whatever it says.
        let _ = coding.announced_bytes(body);
        let Ok(bytes) = coding.decode(body, MOST) else {
            continue;
        };
        assert!(bytes.len() <= MOST, "{} bytes", bytes.len());
        assert_eq!(
            coding.decode(body, bytes.len()).as_ref(),
            Ok(&bytes),
            "it fits exactly"
        );
        if let Some(less) = bytes.len().checked_sub(1) {
            assert_eq!(coding.decode(body, less), Err(DecodeError::TooLarge));
        }
        let cut = coding.decode(&body[..body.len() - 1], MOST);
        assert!(cut.is_err(), "its last byte was not needed");
    }
}
