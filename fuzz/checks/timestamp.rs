//! What has to hold for every text that may be a time. Shared by the fuzz target and the test that replays its corpus.

#![allow(clippy::expect_used, reason = "a check of a fuzz target fails by panicking")]

use jiff::{SignedDuration, civil::DateTime};
use oncelog::event::{Instant, Timestamp};

/// Reads a text as a time and compares with another reader of times.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match Timestamp::parse(text) {
        Ok(time) => {
            let kept = time.text.strip_suffix('Z').expect("it is kept in UTC");
            assert_eq!(
                nanos(kept),
                Some(nanos_of(time.instant)),
                "{text:?} is kept as {kept:?}"
            );
            let again = Timestamp::parse(&time.text);
            assert_eq!(again, Ok(time.clone()), "what is kept stays as it is");
            if let Some(expected) = rfc3339(text) {
                assert_eq!(nanos_of(time.instant), expected, "{text:?}");
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let allowed = rfc3339(text).filter(|nanos| YEARS.contains(nanos));
            assert_eq!(allowed, None, "{text:?} was refused: {error}");
        }
    }
}

const SECOND: i128 = 1_000_000_000;
/// 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z.
const YEARS: std::ops::Range<i128> = -62_135_596_800 * SECOND..253_402_300_800 * SECOND;

fn nanos_of(instant: Instant) -> i128 {
    i128::from(instant.seconds) * SECOND + i128::from(instant.nanos)
}

/// Nanoseconds since 1970 of a date and time of day.
fn nanos(text: &str) -> Option<i128> {
    let time: DateTime = text.parse().ok()?;
    Some(
        time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0))
            .as_nanos(),
    )
}

/// Nanoseconds since 1970 of `YYYY-MM-DDTHH:MM:SS[.digits]` and `Z` or `±HH:MM`; none for anything else, and for second
/// 60.
fn rfc3339(text: &str) -> Option<i128> {
    let (time, offset) = match text.strip_suffix('Z') {
        Some(time) => (time, 0),
        None => {
            let (time, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
            (time, offset_minutes(offset)?)
        }
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let form = whole.bytes().zip(b"0000-00-00T00:00:00".iter());
    let has_form = whole.len() == 19
        && form.clone().all(|(byte, like)| match like {
            b'0' => byte.is_ascii_digit(),
            like => byte == *like,
        });
    let (year, second) = (whole.get(..4)?, whole.get(17..)?);
    if !has_form
        || !digits(fraction)
        || !(1..=9).contains(&fraction.len())
        || second == "60"
        || year == "0000"
    {
        return None;
    }
    let offset = SignedDuration::from_mins(offset).as_nanos();
    Some(nanos(time)? - offset)
}

fn offset_minutes(text: &str) -> Option<i64> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let number = |text: &str, most: i64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number: i64 = text.parse().ok()?;
        (digits && number <= most).then_some(number)
    };
    Some(sign * (number(hours, 23)? * 60 + number(minutes, 59)?))
}
