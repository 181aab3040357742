//! What goes to standard output: for people aligned text, for scripts JSON.

use super::Failure;
use serde::Serialize;
use std::{
    borrow::Cow,
    fmt::Display,
    io::{Write, stdout},
};

/// Prints `value` as one line of JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Failed(error.to_string()))?;
    print(&format_args!("{text}\n"))
}

/// Prints text as it is.
pub(super) fn print(text: &impl Display) -> Result<(), Failure> {
    let mut output = stdout().lock();
    write!(output, "{text}")?;
    output.flush()?;
    Ok(())
}

/// Prints what a command found, as JSON or for people, and fails when it is not as it must be.
pub(super) fn print_verdict(
    found: &(impl Serialize + Display),
    json: bool,
    passed: bool,
) -> Result<(), Failure> {
    if json {
        print_json(found)?;
    } else {
        print(found)?;
    }
    if passed { Ok(()) } else { Err(Failure::Reported) }
}

/// Text of a server's or a stranger's making, fit for a terminal on one line: control characters, and characters that
/// turn the direction of writing, are shown as escapes, so that a name can neither steer a terminal nor pass for
/// another line.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Lines of names and values, the values in one column and [`printable`].
pub(super) fn columns<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    rows.iter()
        .map(|(name, value)| format!("{name:width$}  {}\n", printable(value)))
        .collect()
}

/// A whole number with its digits in groups of three, such as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_in_threes() {
        let texts = [0, 999, 1_000, 123_456, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "123,456", "1,234,567"]);
    }

    #[test]
    fn values_stand_in_one_column() {
        let text = columns([("a", "1".to_owned()), ("long name", "2".to_owned())]);
        assert_eq!(text, "a          1\nlong name  2\n");
    }

    #[test]
    fn a_name_can_neither_steer_a_terminal_nor_pass_for_another_line() {
        assert_eq!(printable("plain é\\"), "plain é\\");
        assert_eq!(
            printable("a\u{1b}[2J\nok\u{9b}\u{202e}"),
            "a\\u{1b}[2J\\nok\\u{9b}\\u{202e}"
        );
        assert_eq!(columns([("topics", "\r".to_owned())]), "topics  \\r\n");
    }
}
