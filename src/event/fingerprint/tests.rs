use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn of(payload: &str) -> u64 {
    Fingerprint::of(payload)
        .unwrap_or_else(|error| panic!("{payload}: {error}"))
        .0
}

fn of_value(value: &str) -> u64 {
    of(&format!(r#"{{"v":{value}}}"#))
}

#[track_caller]
fn assert_refused(payload: &str, message: &str) {
    assert_eq!(Fingerprint::of(payload).unwrap_err().to_string(), message);
}

#[test]
fn a_fingerprint_never_changes() {
    let payload = r#"{"null":null,"bools":[true,false],"text":"é\n","small":-12.50,"large":123456789012345678901234567890,"object":{"":{}},"list":[]}"#;
    assert_eq!(of(payload), 1_720_431_501_965_322_088);
}

#[test]
fn key_order_white_space_and_escapes_do_not_matter() {
    assert_eq!(
        of(r#"{"a":1,"b":{"c":"é/","d":[true,null]}}"#),
        of("\n{ \"b\" : {\"d\":[ true,\tnull ], \"c\":\"\\u00e9\\/\"},\r\"\\u0061\" : 1 }")
    );
}

#[test]
fn equal_numbers_are_equal_however_they_are_spelt() {
    for spellings in [
        &[
            "1",
            "1.0",
            "10e-1",
            "0.1E1",
            "0.1e+01",
            "1e0",
            "1E-0",
            "0.00000000000000000000000001e26",
        ][..],
        &[
            "0",
            "-0",
            "0.0",
            "-0.0e5",
            "0e999999999999999999",
            "0.00000000000000000000000000000",
        ],
        &["0.1", "0.10", "1e-1", "0.100000000000000000000000000000"],
        &["-1500", "-1.5e3", "-15e2", "-1500.000"],
        &["1e400", "10e399", "0.1e401"],
        &[
            "12345678901234567890123",
            "12345678901234567890123.0",
            "1.2345678901234567890123e22",
            "123456789012345678901230e-1",
        ],
        &["10000000000000000000000000", "1e25"],
        &[
            "9999999999999999999",
            "9999999999999999999.0",
            "0.9999999999999999999e19",
        ],
        &["1e000000000000000000000000000002", "100"],
    ] {
        for spelling in spellings {
            assert_eq!(of_value(spelling), of_value(spellings[0]), "{spelling}");
        }
    }
}

#[test]
fn different_values_differ() {
    let values = [
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "10",
        "0.1",
        "1e400",
        "1e401",
        "-1e400",
        "1e-400",
        "12345678901234567890123",
        "12345678901234567890124",
        "-12345678901234567890123",
        "12345678901234567890123e1",
        "9007199254740992",
        "9007199254740993",
        "18446744073709551616",
        r#""""#,
        r#""0""#,
        r#""1""#,
        r#""null""#,
        r#""\u0000""#,
        "[]",
        "[null]",
        "[null,null]",
        "[[]]",
        "[0]",
        "[1,2]",
        "[2,1]",
        "[[1],2]",
        "[1,[2]]",
        "{}",
        r#"{"a":1}"#,
        r#"{"a":2}"#,
        r#"{"b":1}"#,
        r#"{"a":"b"}"#,
        r#"{"b":"a"}"#,
        r#"{"a":1,"b":2}"#,
        r#"{"a":2,"b":1}"#,
        r#"[{"a":1},{"b":2}]"#,
        r#"[{"a":1,"b":2}]"#,
        r#"{"a":{}}"#,
        r#"{"a":[]}"#,
        r#"{"a":null}"#,
        r#"{"é":1}"#,
        r#"{"e\u0301":1}"#,
    ];
    let mut seen = BTreeMap::new();
    for value in values {
        if let Some(other) = seen.insert(of_value(value), value) {
            panic!("{value} and {other} have the same fingerprint");
        }
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    assert_refused("[]", "payload: must be an object, not an array");
    assert_refused("{", "payload: is not JSON (near byte 1)");
    assert_refused("{} x", "payload: is not JSON (near byte 3)");
    assert_refused(r#"{"a":"\x"}"#, "payload: is not JSON (near byte 9)");
    assert_refused(
        r#"{"user":{"tags":[1,2,"\uD800"]}}"#,
        "payload.user.tags[2]: has a lone surrogate `\\ud800`; surrogates are allowed in pairs only",
    );
    assert_refused(
        r#"{"\udfff":1}"#,
        "payload[\"\\udfff\"]: has a lone surrogate `\\udfff`; surrogates are allowed in pairs only",
    );
    assert_refused(
        r#"{"a":{"x":1,"y":2,"\u0078":3}}"#,
        "payload.a: has the key `x` more than once",
    );
    assert_refused(
        r#"{"a":-1e-1000000000000000000}"#,
        "payload.a: has a number whose exponent has 19 digits; at most 18 are allowed",
    );
    let long = "k".repeat(100);
    assert_refused(
        &format!(r#"{{"{long}":[1,{{"{long}":1,"{long}":2}}]}}"#),
        &format!(
            "payload.{0}…[1]: has the key `{0}…` more than once",
            "k".repeat(40)
        ),
    );
}

#[test]
fn arrays_count_as_levels_too() {
    let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert!(Fingerprint::of(&nested(64)).is_ok());
    assert!(
        Fingerprint::of(&nested(65))
            .unwrap_err()
            .message
            .starts_with("is nested deeper")
    );
}

#[test]
fn a_duplicate_is_found_among_many_keys() {
    let mut keys: Vec<_> = (0..5000)
        .map(|i| format!("\"key{i}\":{{\"key{i}\":0}}"))
        .collect();
    assert!(Fingerprint::of(&format!("{{{}}}", keys.join(","))).is_ok());
    keys.push("\"\\u006bey1234\":1".to_owned());
    assert_refused(
        &format!("{{{}}}", keys.join(",")),
        "payload: has the key `key1234` more than once",
    );
}

#[test]
fn keys_with_one_hash_are_compared_by_their_text() {
    let text = r#"abca"#;
    let key = |start| Key {
        hash: 1,
        start,
        end: start + 1,
    };
    for many in [1, FEW_KEYS] {
        let others = (0..many as u64).map(|i| Key {
            hash: 100 + i,
            ..key(0)
        });
        let mut distinct: Vec<_> = others.clone().chain([key(0), key(1), key(2)]).collect();
        assert!(refuse_duplicates(&mut distinct, text).is_ok());
        let mut same: Vec<_> = others.chain([key(0), key(1), key(2), key(3)]).collect();
        assert!(refuse_duplicates(&mut same, text).is_err());
    }
}

/// A JSON value with exact decimals: what fingerprints are compared with.
#[derive(Clone, Debug, PartialEq)]
enum Model {
    Null,
    Bool(bool),
    /// Digits without zeros at the ends, and the exponent; no digits is zero.
    Number {
        negative: bool,
        digits: String,
        exponent: i64,
    },
    Text(String),
    List(Vec<Model>),
    Object(BTreeMap<String, Model>),
}

fn model() -> impl Strategy<Value = Model> {
    let number = (any::<bool>(), "([1-9]([0-9]{0,30}[1-9])?)?", -400..400_i64).prop_map(
        |(negative, digits, exponent)| Model::Number {
            negative: negative && !digits.is_empty(),
            exponent: if digits.is_empty() { 0 } else { exponent },
            digits,
        },
    );
    let text = prop_oneof!["[ab]{0,2}", ".{0,12}", "\\PC{0,4}"];
    let leaf = prop_oneof![
        Just(Model::Null),
        any::<bool>().prop_map(Model::Bool),
        number,
        text.clone().prop_map(Model::Text),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Model::List),
            prop::collection::btree_map(text.clone(), inner, 0..5).prop_map(Model::Object),
        ]
    })
}

/// Writes values in any of the ways that JSON has.
struct Spelling(fastrand::Rng);

impl Spelling {
    fn space(&mut self) -> &'static str {
        ["", "", "", " ", "\n\t"][self.0.usize(..5)]
    }

    fn value(&mut self, value: &Model) -> String {
        let (before, after) = (self.space(), self.space());
        let text = match value {
            Model::Null => "null".to_owned(),
            Model::Bool(value) => value.to_string(),
            Model::Number {
                negative,
                digits,
                exponent,
            } => self.number(*negative, digits, *exponent),
            Model::Text(text) => self.text(text),
            Model::List(items) => {
                let items: Vec<_> = items.iter().map(|item| self.value(item)).collect();
                format!("[{}{}]", self.space(), items.join(","))
            }
            Model::Object(members) => {
                let mut members: Vec<_> = members
                    .iter()
                    .map(|(key, value)| format!("{}{}:{}", self.text(key), self.space(), self.value(value)))
                    .collect();
                self.0.shuffle(&mut members);
                format!("{{{}{}}}", self.space(), members.join(","))
            }
        };
        format!("{before}{text}{after}")
    }

    fn number(&mut self, negative: bool, digits: &str, exponent: i64) -> String {
        let zeros = self.0.usize(..25);
        let (digits, exponent) = (format!("{digits}{}", "0".repeat(zeros)), exponent - zeros as i64);
        let sign = if negative || (digits.trim_end_matches('0').is_empty() && self.0.bool()) {
            "-"
        } else {
            ""
        };
        // The point goes behind any of the digits, or before all.
        let point = self.0.usize(..=digits.len());
        let (integer, fraction) = digits.split_at(point);
        let exponent = exponent + fraction.len() as i64;
        let integer = if integer.is_empty() || integer.starts_with('0') {
            "0"
        } else {
            integer
        };
        let fraction = if fraction.is_empty() {
            String::new()
        } else {
            format!(".{fraction}")
        };
        let exponent = match (exponent, self.0.bool()) {
            (0, true) => String::new(),
            (0.., true) => format!("e+0{exponent}"),
            _ => format!("E{exponent}"),
        };
        format!("{sign}{integer}{fraction}{exponent}")
    }

    fn text(&mut self, text: &str) -> String {
        let mut json = String::from("\"");
        for c in text.chars() {
            let must = c < ' ' || c == '"' || c == '\\';
            if must || self.0.u8(..4) == 0 {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    if self.0.bool() {
                        json.push_str(&format!("\\u{unit:04x}"));
                    } else {
                        json.push_str(&format!("\\u{unit:04X}"));
                    }
                }
            } else {
                json.push(c);
            }
        }
        json.push('"');
        json
    }
}

fn payload(value: &Model) -> Model {
    Model::Object(BTreeMap::from([("v".to_owned(), value.clone())]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn fingerprints_are_equal_when_values_are_and_only_then(a in model(), b in model(), seed in any::<u64>()) {
        let mut spelling = Spelling(fastrand::Rng::with_seed(seed));
        let (first, again, other) = (
            spelling.value(&payload(&a)),
            spelling.value(&payload(&a)),
            spelling.value(&payload(&b)),
        );
        for text in [&first, &again, &other] {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "{}", text);
        }
        prop_assert_eq!(of(&first), of(&again), "{} and {}", first, again);
        prop_assert_eq!(of(&first) == of(&other), a == b, "{} and {}", first, other);
    }

    #[test]
    fn any_text_is_answered(text in "[{}\\[\\]:,\"\\\\u0-9a-f.eE+ -]{0,40}|\\PC{0,30}") {
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        match Fingerprint::of(&text) {
            Ok(_) => prop_assert!(is_json),
            Err(error) => prop_assert!(!(is_json && error.message.starts_with("is not JSON")), "{}", error),
        }
    }
}
