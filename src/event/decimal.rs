//! A JSON number as an exact decimal, in 64 bits.
//!
//! Every number is `± digits · 10^exponent` in exactly one way, once zeros at both ends of the digits are gone; zero
//! has no digits, no sign and no exponent. Equal numbers have the same hash however they are spelt, and nothing is
//! ever rounded.

use super::json::{Fault, RawNumber};
use crate::limits::MAX_EXPONENT_DIGITS;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Every run of this many digits fits into 64 bits.
const SHORT_DIGITS: usize = 19;

// Seeds that keep the kinds apart.
const POSITIVE: u64 = 0x706f_7369_7469_7665;
const NEGATIVE: u64 = 0x6e65_6761_7469_7665;

/// The hash of a number's value.
pub(super) fn hash(number: &RawNumber<'_>) -> Result<u64, Fault> {
    let exponent = exponent(number)? - number.fraction.len() as i64;
    let seed = if number.negative { NEGATIVE } else { POSITIVE };
    if number.integer.len() + number.fraction.len() <= SHORT_DIGITS {
        let digits = append(append(0, number.integer), number.fraction);
        return Ok(hash_short(digits, exponent, seed));
    }
    let digits = format!("{}{}", number.integer, number.fraction);
    let significant = digits.trim_start_matches('0');
    let trimmed = significant.trim_end_matches('0');
    let exponent = exponent + (significant.len() - trimmed.len()) as i64;
    if trimmed.len() <= SHORT_DIGITS {
        return Ok(hash_short(append(0, trimmed), exponent, seed));
    }
    Ok(hash_pair(xxh3_64(trimmed.as_bytes()), exponent, !seed))
}

/// The exponent as it was sent; small enough that lengths of texts can be added to it.
fn exponent(number: &RawNumber<'_>) -> Result<i64, Fault> {
    if number.exponent.is_empty() {
        return Ok(0);
    }
    let significant = number.exponent.trim_start_matches('0');
    if significant.len() > MAX_EXPONENT_DIGITS {
        return Err(Fault::invalid(format!(
            "has a number whose exponent has {} digits; at most {MAX_EXPONENT_DIGITS} are allowed",
            significant.len()
        )));
    }
    let exponent = append(0, significant) as i64;
    Ok(if number.exponent_negative {
        -exponent
    } else {
        exponent
    })
}

fn append(number: u64, digits: &str) -> u64 {
    digits
        .bytes()
        .fold(number, |number, digit| number * 10 + u64::from(digit - b'0'))
}

fn hash_short(mut digits: u64, mut exponent: i64, seed: u64) -> u64 {
    if digits == 0 {
        return hash_pair(0, 0, POSITIVE);
    }
    while digits.is_multiple_of(10) {
        digits /= 10;
        exponent += 1;
    }
    hash_pair(digits, exponent, seed)
}

fn hash_pair(digits: u64, exponent: i64, seed: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&digits.to_le_bytes());
    bytes[8..].copy_from_slice(&exponent.to_le_bytes());
    xxh3_64_with_seed(&bytes, seed)
}
