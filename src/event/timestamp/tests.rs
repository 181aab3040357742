use super::*;
use proptest::prelude::*;

#[track_caller]
fn assert_kept(sent: &str, kept: &str) {
    let timestamp = Timestamp::parse(sent).unwrap_or_else(|error| panic!("{sent}: {error}"));
    assert_eq!(timestamp.text, kept, "{sent}");
    let again = Timestamp::parse(kept).unwrap();
    assert_eq!(timestamp.instant, again.instant, "{sent}");
    assert!(matches!(again.text, Cow::Borrowed(_)), "{kept} is kept as it is");
}

#[track_caller]
fn assert_refused(sent: &str, reason: &str) {
    let message = Timestamp::parse(sent).unwrap_err().to_string();
    assert_eq!(message.split("; send an ISO 8601").next(), Some(reason), "{sent}");
}

#[test]
fn every_form_that_is_taken_is_kept_in_utc() {
    for (sent, kept) in [
        ("2025-10-23T10:00:00Z", "2025-10-23T10:00:00Z"),
        ("2025-10-23T10:00:00.123456789Z", "2025-10-23T10:00:00.123456789Z"),
        ("2025-10-23T10:00:00.100Z", "2025-10-23T10:00:00.100Z"),
        ("2025-10-23T10:00:00,5Z", "2025-10-23T10:00:00.5Z"),
        ("2025-10-23t10:00:00z", "2025-10-23T10:00:00Z"),
        ("2025-10-23 10:00:00Z", "2025-10-23T10:00:00Z"),
        ("2025-10-23T10:00:00", "2025-10-23T10:00:00Z"),
        ("2025-10-23T10:00:00.25", "2025-10-23T10:00:00.25Z"),
        ("2025-10-23T10:00Z", "2025-10-23T10:00:00Z"),
        ("2025-10-23T10:00", "2025-10-23T10:00:00Z"),
        ("2025-10-23T12:00:00+02:00", "2025-10-23T10:00:00Z"),
        ("2025-10-23T12:00:00.7+0200", "2025-10-23T10:00:00.7Z"),
        ("2025-10-23T12:00+02", "2025-10-23T10:00:00Z"),
        ("2025-10-23T04:30:00-05:30", "2025-10-23T10:00:00Z"),
        ("2025-10-23T10:00:00-00:00", "2025-10-23T10:00:00Z"),
        ("2025-10-23T09:59:00+23:59", "2025-10-22T10:00:00Z"),
        ("20251023T100000Z", "2025-10-23T10:00:00Z"),
        ("20251023T100000.5+0200", "2025-10-23T08:00:00.5Z"),
        ("20251023T1000", "2025-10-23T10:00:00Z"),
        ("2024-02-29T23:30:00-01:00", "2024-03-01T00:30:00Z"),
        ("2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
        ("0000-12-31T23:00:00-01:00", "0001-01-01T00:00:00Z"),
        // Leap seconds.
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.5Z"),
        ("2016-12-31T18:59:60-05:00", "2017-01-01T00:00:00Z"),
        ("20170101T052960+0530", "2017-01-01T00:00:00Z"),
    ] {
        assert_kept(sent, kept);
    }
}

#[test]
fn everything_else_is_refused_with_its_reason() {
    let year = "the year must be 0001 to 9999 in UTC";
    let offset = "the offset must be `Z`, `±HH`, `±HHMM` or `±HH:MM`, up to 23:59";
    let number = "a number of seconds or milliseconds is not allowed";
    let leap = "the second 60 is allowed only as the last second of a day in UTC, 23:59:60";
    for (sent, reason) in [
        ("", "it is empty"),
        ("yesterday", "the year must have four digits"),
        (" 2025-10-23T10:00:00Z", "the year must have four digits"),
        ("25-10-23T10:00:00Z", "the year must have four digits"),
        ("2025", "the month must have two digits"),
        ("2025-10", "the day is missing"),
        ("2025-10-23", "the time of day is missing"),
        ("20251023", "the time of day is missing"),
        ("2025-10-23Z", "after the date `T` or one space must follow"),
        ("2025-10-23  10:00:00Z", "the hour must have two digits"),
        ("2025-10-23T10", "after the hour `:` and the minute must follow"),
        (
            "2025-10-23T100000Z",
            "after the hour `:` and the minute must follow",
        ),
        ("20251023T10:00:00Z", "the minute must have two digits"),
        ("2025-W43-4T10:00:00Z", "week dates are not allowed"),
        ("2025W434T100000Z", "week dates are not allowed"),
        ("2025-296T10:00:00Z", "ordinal dates are not allowed"),
        ("2025296T100000Z", "ordinal dates are not allowed"),
        ("1761213600", number),
        ("1761213600.5", number),
        ("1761213600000", number),
        ("+2025-10-23T10:00:00Z", "a sign before the year is not allowed"),
        ("-0001-10-23T10:00:00Z", "a sign before the year is not allowed"),
        ("10000-01-01T00:00:00Z", "the year must be 0001 to 9999"),
        ("0000-01-01T00:00:00Z", year),
        ("0001-01-01T00:00:00+00:01", year),
        ("9999-12-31T23:59:59-00:01", year),
        ("9999-12-31T23:59:60Z", year),
        ("2025-13-23T10:00:00Z", "the month must be 01 to 12, not 13"),
        ("2025-00-23T10:00:00Z", "the month must be 01 to 12, not 00"),
        (
            "2025-02-29T10:00:00Z",
            "the day must be 01 to 28 in 2025-02, not 29",
        ),
        (
            "1900-02-29T10:00:00Z",
            "the day must be 01 to 28 in 1900-02, not 29",
        ),
        (
            "2025-04-31T10:00:00Z",
            "the day must be 01 to 30 in 2025-04, not 31",
        ),
        (
            "2025-10-00T10:00:00Z",
            "the day must be 01 to 31 in 2025-10, not 00",
        ),
        ("2025-10-23T24:00:00Z", "the hour must be 00 to 23, not 24"),
        ("2025-10-23T10:60:00Z", "the minute must be 00 to 59, not 60"),
        ("2025-10-23T10:00:61Z", "the second must be 00 to 59, not 61"),
        ("2025-10-23T10:00:60Z", leap),
        ("2016-12-31T23:59:60+01:00", leap),
        (
            "2025-10-23T10:00.5Z",
            "a fraction is allowed behind the seconds only",
        ),
        (
            "2025-10-23T10:00:00.Z",
            "the fraction must have 1 to 9 digits, not 0",
        ),
        (
            "2025-10-23T10:00:00.1234567890Z",
            "the fraction must have 1 to 9 digits, not 10",
        ),
        ("2025-10-23T10:00:00+24:00", offset),
        ("2025-10-23T10:00:00+02:60", offset),
        ("2025-10-23T10:00:00+2", offset),
        ("2025-10-23T10:00:00+02:00:00", offset),
        ("2025-10-23T10:00:00+02:", offset),
        ("2025-10-23T10:00:00 Z", offset),
        ("2025-10-23T10:00:00Zulu", offset),
        ("2025-10-23T10:00:00Z ", offset),
        ("2025-10-23T10:00:00\u{2212}02:00", offset),
        ("2025-10-23T10:00:00 UTC", offset),
        (
            "2025-10-23T10:00:00+02:00[Europe/Berlin]",
            "a time zone in brackets is not allowed",
        ),
        ("２０２５-10-23T10:00:00Z", "the year must have four digits"),
    ] {
        assert_refused(sent, reason);
    }
}

#[test]
fn a_refusal_says_what_is_allowed() {
    assert_eq!(
        Instant::parse("2025-10-23").unwrap_err().to_string(),
        "the time of day is missing; send an ISO 8601 date-time such as 2025-10-23T10:00:00.123Z \
         or 2025-10-23T12:00:00+02:00"
    );
}

#[test]
fn instants_order_as_time_does() {
    let times = [
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999999Z",
        "1970-01-01T00:00:00Z",
        "2025-10-23T10:00:00.09Z",
        "2025-10-23T10:00:00.1Z",
        "2025-10-23T12:00:00.2+02:00",
    ];
    let instants: Vec<_> = times.iter().map(|time| Instant::parse(time).unwrap()).collect();
    assert!(instants.is_sorted());
    assert_eq!(
        instants[1],
        Instant {
            seconds: -1,
            nanos: 999_999_999
        }
    );
    assert_eq!(
        Instant::parse("2025-10-23T10:00:00.10Z"),
        Instant::parse("2025-10-23T10:00:00.1Z")
    );
}

#[test]
fn microseconds_are_written_with_six_digits() {
    for (micros, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (1_761_213_600_120_000, "2025-10-23T10:00:00.120000Z"),
        (i64::MAX, "9999-12-30T22:00:00.999999Z"),
        (i64::MIN, "-009999-01-02T01:59:59.000000Z"),
    ] {
        assert_eq!(format_micros(micros), text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn instants_are_those_of_jiff(seconds in -62_135_596_800_i64..253_402_207_200, nanos in 0..1_000_000_000_i32, minutes in -1439..1440_i64) {
        let expected = Instant { seconds, nanos: nanos as u32 };
        let time = jiff::Timestamp::from_second(seconds).unwrap() + SignedDuration::from_nanos(nanos.into());
        let utc = format!("{time:.9}");
        let kept = Timestamp::parse(&utc).unwrap();
        prop_assert_eq!(&kept.text, &utc);
        prop_assert_eq!(kept.instant, expected);

        // The same time elsewhere.
        let local = civil::DateTime::new(1970, 1, 1, 0, 0, 0, 0).unwrap()
            + SignedDuration::new(seconds, nanos) + SignedDuration::from_mins(minutes);
        prop_assume!((1..=9999).contains(&local.year()));
        let (sign, offset) = (if minutes < 0 { '-' } else { '+' }, minutes.abs());
        let sent = format!("{local:.9}{sign}{:02}:{:02}", offset / 60, offset % 60);
        let kept = Timestamp::parse(&sent).unwrap();
        prop_assert_eq!(&kept.text, &utc);
        prop_assert_eq!(kept.instant, expected);
    }

    #[test]
    fn any_text_is_answered(text in "[0-9TtZzW:.,+ \\[-]{0,30}|\\PC{0,30}") {
        if let Ok(timestamp) = Timestamp::parse(&text) {
            let again = Timestamp::parse(&timestamp.text).unwrap();
            prop_assert_eq!(again.instant, timestamp.instant);
            prop_assert!(matches!(again.text, Cow::Borrowed(_)));
        }
    }
}
