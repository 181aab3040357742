//! Decompresses bodies: never to more bytes than asked for, and with every checksum checked.

use crate::limits::MAX_ZSTD_WINDOW_BYTES;
use flate2::bufread::MultiGzDecoder;
use std::io::{self, Read};
use zstd_safe::{DCtx, zstd_sys::ZSTD_ErrorCode};

/// A coding in which a body may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCoding {
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// One or more zstd frames (RFC 8878); skippable ones are skipped.
    Zstd,
}

/// Why a body could not be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It becomes larger than it may.
    #[error("it has more bytes once it is decompressed")]
    TooLarge,
    /// Its end is missing, or all of it.
    #[error("it ends too early")]
    CutOff,
    /// It is not of its coding, or damaged, or something else follows it.
    #[error("{0}")]
    Broken(String),
    /// A zstd frame may refer to bytes too far back.
    #[error(
        "a frame asks for a window of {bytes} bytes, and at most {MAX_ZSTD_WINDOW_BYTES} are allowed; compress \
         without --long or --ultra"
    )]
    Window {
        /// How far back.
        bytes: u64,
    },
}

impl BodyCoding {
    /// Its name in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// How many bytes a body becomes as far as it says itself, which may be wrong. Looks at a few bytes only.
    pub fn announced_bytes(self, body: &[u8]) -> Option<u64> {
        match self {
            // The last four bytes: the size of the last member. Deflate cannot make more of a byte than this.
            Self::Gzip => {
                let last = body
                    .last_chunk()
                    .map(|bytes| u64::from(u32::from_le_bytes(*bytes)))?;
                (last <= MOST_DEFLATED * body.len() as u64).then_some(last)
            }
            // The size of the first frame.
            Self::Zstd => zstd_safe::get_frame_content_size(body).ok().flatten(),
        }
    }

    /// Decompresses `body` to at most `most` bytes. The memory that it takes is these and some 200 KiB.
    pub fn decode(self, body: &[u8], most: usize) -> Result<Vec<u8>, DecodeError> {
        let mut bytes = match self {
            Self::Gzip => gzip(body, most)?,
            Self::Zstd => zstd(body, most)?,
        };
        bytes.shrink_to_fit();
        Ok(bytes)
    }
}

/// What a byte of a deflated text can become at the most: 258 bytes for two bits.
const MOST_DEFLATED: u64 = 1032;

fn gzip(body: &[u8], most: usize) -> Result<Vec<u8>, DecodeError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => DecodeError::CutOff,
        _ => DecodeError::Broken(error.to_string()),
    };
    let mut bytes = Vec::with_capacity(most);
    let mut decoder = MultiGzDecoder::new(body);
    decoder
        .by_ref()
        .take(most as u64)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    // Its checksum is looked at by whoever asks for more.
    match decoder.read(&mut [0]).map_err(failed)? {
        0 => Ok(bytes),
        _ => Err(DecodeError::TooLarge),
    }
}

fn zstd(body: &[u8], most: usize) -> Result<Vec<u8>, DecodeError> {
    check_frames(body)?;
    let mut bytes = Vec::with_capacity(most);
    let mut decoder =
        DCtx::try_create().ok_or_else(|| DecodeError::Broken("there is no memory to do it".to_owned()))?;
    decoder.decompress(&mut bytes, body).map_err(zstd_error)?;
    Ok(bytes)
}

/// Checks that there are whole frames and nothing else, and that no frame asks for a larger window than HTTP allows
/// (RFC 9659). It would cost nothing here, where all bytes stay in place, but other receivers have to refuse it.
fn check_frames(body: &[u8]) -> Result<(), DecodeError> {
    let mut rest = body;
    if rest.is_empty() {
        return Err(DecodeError::CutOff);
    }
    while !rest.is_empty() {
        if let Some(bytes) = window_bytes(rest)
            && bytes > MAX_ZSTD_WINDOW_BYTES
        {
            return Err(DecodeError::Window { bytes });
        }
        let size = zstd_safe::find_frame_compressed_size(rest).map_err(zstd_error)?;
        rest = rest.get(size.max(1)..).unwrap_or_default();
    }
    Ok(())
}

/// The window that a frame asks for (RFC 8878, section 3.1.1.1.2). None when it is skippable, or when its window is all
/// of it, for that has a bound of its own.
fn window_bytes(frame: &[u8]) -> Option<u64> {
    const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let header = frame.strip_prefix(&MAGIC)?;
    if header.first()? & SINGLE_SEGMENT != 0 {
        return None;
    }
    let descriptor = *header.get(1)?;
    let base = 1_u64 << (10 + (descriptor >> 3));
    Some(base + base / 8 * u64::from(descriptor & 7))
}

fn zstd_error(code: usize) -> DecodeError {
    let is = |kind| zstd_safe::is_error_kind(code, kind);
    if is(ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall) {
        DecodeError::TooLarge
    } else if is(ZSTD_ErrorCode::ZSTD_error_srcSize_wrong) {
        DecodeError::CutOff
    } else {
        DecodeError::Broken(zstd_safe::get_error_name(code).to_lowercase())
    }
}
