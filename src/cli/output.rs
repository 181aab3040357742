//! What goes to standard output: for people aligned text, for scripts JSON.

use super::Failure;
use serde::Serialize;
use std::{
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

/// Lines of names and values, the values in one column.
pub(super) fn columns<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    rows.iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
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
}
