//! The older Prometheus text format (0.0.4), for scrapers that do not know OpenMetrics, made from OpenMetrics text.
//!
//! The samples are the same. The families differ: in OpenMetrics a counter or info is named without the ending of its
//! samples, and `info`, `UNIT` and `EOF` are unknown to the older format.

use std::{collections::HashMap, fmt::Write};

/// The same metrics in the older format.
pub(super) fn from_open_metrics(text: &str) -> String {
    // A family's help comes before its type.
    let kinds: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let mut classic = String::with_capacity(text.len() + 1024);
    for line in text.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            classic.push_str(line);
            classic.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (Some(word @ ("HELP" | "TYPE")), Some(family), Some(rest)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (ending, kind) = match kinds.get(family) {
            Some(&"counter") => ("_total", "counter"),
            Some(&"info") => ("_info", "gauge"),
            Some(&"unknown") => ("", "untyped"),
            Some(kind) => ("", *kind),
            None => continue,
        };
        let rest = if word == "TYPE" { kind } else { rest };
        // Writing to a string cannot fail.
        let _ = writeln!(classic, "# {word} {family}{ending} {rest}");
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_like_their_samples() {
        let open = "# HELP a_build The program.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP a_requests Requests.\n# TYPE a_requests counter\na_requests_total 7\n\
                    # HELP a_size_bytes Size.\n# TYPE a_size_bytes gauge\n# UNIT a_size_bytes bytes\na_size_bytes 8\n\
                    # EOF\n";
        let classic = "# HELP a_build_info The program.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                       # HELP a_requests_total Requests.\n# TYPE a_requests_total counter\na_requests_total 7\n\
                       # HELP a_size_bytes Size.\n# TYPE a_size_bytes gauge\na_size_bytes 8\n";
        assert_eq!(from_open_metrics(open), classic);
    }
}
