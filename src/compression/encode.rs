//! Compresses what is sent. Levels that cost little more time than sending the bytes as they are.

use brotli::enc::BrotliEncoderParams;
use flate2::{Compression, write::GzEncoder};
use std::io::{self, Write};

/// A coding that something is sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// What everybody can read.
    Gzip,
    /// As small as brotli, and by far the quickest.
    Zstd,
    /// For browsers that do not know zstd.
    Brotli,
}

impl Coding {
    /// Its name in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        }
    }

    /// Compresses `bytes`. Besides what it returns, which may have more than `bytes`, it takes some 8 MiB at the most.
    pub fn encode(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut encoded = match self {
            Self::Gzip => gzip(bytes)?,
            Self::Zstd => zstd(bytes)?,
            Self::Brotli => brotli(bytes)?,
        };
        encoded.shrink_to_fit();
        Ok(encoded)
    }
}

const GZIP_LEVEL: u32 = 3;
const ZSTD_LEVEL: i32 = 3;
/// Less than 2 % more than with 4, in a third to a half of the time.
const BROTLI_QUALITY: i32 = 3;
/// The logarithm of brotli's window in bytes: 1 MiB.
const BROTLI_WINDOW: i32 = 20;

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn zstd(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoded = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    zstd_safe::compress(&mut encoded, bytes, ZSTD_LEVEL)
        .map_err(|code| io::Error::other(zstd_safe::get_error_name(code)))?;
    Ok(encoded)
}

fn brotli(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    let parameters = BrotliEncoderParams {
        quality: BROTLI_QUALITY,
        lgwin: BROTLI_WINDOW,
        size_hint: bytes.len(),
        ..BrotliEncoderParams::default()
    };
    let mut encoded = Vec::new();
    brotli::BrotliCompress(&mut bytes, &mut encoded, &parameters)?;
    Ok(encoded)
}
