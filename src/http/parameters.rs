//! The parameters of a query string: each known, given at most once, and valid UTF-8; anything else is a 422 that
//! names it.

use super::error::Problem;
use crate::limits::MAX_NAME_CHARS;
use percent_encoding::percent_decode_str;

/// The parameters of one request.
#[derive(Debug)]
pub(crate) struct Parameters {
    given: Vec<(&'static str, String)>,
}

impl Parameters {
    /// Reads a query string that may hold the parameters in `known`.
    pub(crate) fn parse(query: Option<&str>, known: &'static [&'static str]) -> Result<Self, Problem> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).unwrap_or_else(|| name.to_owned());
            let Some(known_name) = known.iter().find(|known| **known == name) else {
                return Err(Problem::parameter(&name, unknown(known)));
            };
            if given.iter().any(|(given, _)| given == known_name) {
                return Err(Problem::parameter(&name, "given more than once"));
            }
            let Some(value) = decode(value) else {
                return Err(Problem::parameter(
                    &name,
                    "the percent-encoded value is not UTF-8",
                ));
            };
            given.push((known_name, value));
        }
        Ok(Self { given })
    }

    /// Takes a parameter's value out.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let place = self.given.iter().position(|(given, _)| *given == name)?;
        Some(self.given.swap_remove(place).1)
    }

    /// A name by the rules for a topic, event id or source: what breaks them can be stored nowhere.
    pub(crate) fn name(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        check_name(name, &value)?;
        Ok(Some(value))
    }

    /// A whole number from `min` to `max`.
    pub(crate) fn number(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Problem> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse::<u64>() {
            Ok(number) if digits && (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(Problem::parameter(
                name,
                format!("a whole number from {min} to {max} is needed, not {value:?}"),
            )),
        }
    }

    /// One of the `allowed` words, as its value.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, allowed: &[(&str, T)]) -> Result<Option<T>, Problem> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        allowed
            .iter()
            .find(|(word, _)| *word == value)
            .map(|(_, meaning)| Some(*meaning))
            .ok_or_else(|| {
                let words: Vec<&str> = allowed.iter().map(|(word, _)| *word).collect();
                Problem::parameter(name, format!("{} is needed, not {value:?}", words.join(" or ")))
            })
    }
}

/// Refuses a value that breaks the rules for names.
pub(crate) fn check_name(name: &str, value: &str) -> Result<(), Problem> {
    let chars = value.chars().count();
    if chars == 0 {
        Err(Problem::parameter(name, "must not be empty"))
    } else if chars > MAX_NAME_CHARS {
        let message = format!("must have at most {MAX_NAME_CHARS} characters, not {chars}");
        Err(Problem::parameter(name, message))
    } else if value.contains('\0') {
        Err(Problem::parameter(name, "must not contain U+0000"))
    } else {
        Ok(())
    }
}

/// Form decoding: `+` is a space, `%2B` is a plus.
fn decode(text: &str) -> Option<String> {
    if !text.contains(['+', '%']) {
        return Some(text.to_owned());
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text)
        .decode_utf8()
        .ok()
        .map(std::borrow::Cow::into_owned)
}

fn unknown(known: &[&str]) -> String {
    match known {
        [] => "unknown parameter; this path takes none".to_owned(),
        known => format!("unknown parameter; this path takes {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_form_decoded() {
        let mut parameters =
            Parameters::parse(Some("a=x+y%2Bz&b=%C3%A9&c"), &["a", "b", "c"]).expect("valid parameters");
        assert_eq!(parameters.take("a").as_deref(), Some("x y+z"));
        assert_eq!(parameters.take("b").as_deref(), Some("é"));
        assert_eq!(parameters.take("c").as_deref(), Some(""));
        assert_eq!(parameters.take("a"), None);
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for (query, part) in [
            ("b=1", "b: unknown parameter; this path takes a"),
            ("a=1&a=1", "a: given more than once"),
            ("a=%FF", "a: the percent-encoded value is not UTF-8"),
        ] {
            let problem = Parameters::parse(Some(query), &["a"]).expect_err(query);
            assert!(format!("{problem:?}").contains(part), "{query}: {problem:?}");
        }
    }

    #[test]
    fn names_keep_the_rules_for_names() {
        let longest = "é".repeat(MAX_NAME_CHARS);
        for (value, allowed) in [
            ("a", true),
            (longest.as_str(), true),
            ("", false),
            ("a\0", false),
            (&format!("{longest}a"), false),
        ] {
            let mut parameters = Parameters {
                given: vec![("n", value.to_owned())],
            };
            assert_eq!(parameters.name("n").is_ok(), allowed, "{value:?}");
        }
    }

    #[test]
    fn numbers_stay_in_their_range() {
        for (value, allowed) in [
            ("1", true),
            ("9", true),
            ("0", false),
            ("10", false),
            ("-1", false),
            ("", false),
            ("+5", false),
            ("05", true),
        ] {
            let mut parameters = Parameters {
                given: vec![("n", value.to_owned())],
            };
            assert_eq!(parameters.number("n", 1, 9).is_ok(), allowed, "{value:?}");
        }
    }
}
