//! What a key allows: scopes, and the topics for which they hold.

use crate::limits::MAX_NAME_CHARS;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A kind of thing that a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Sending events.
    Publish,
    /// Reading events, topics, counters and metrics.
    Read,
    /// Everything, of every topic.
    Admin,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Admin => "admin",
        })
    }
}

/// Some topics: a name in which each `*` stands for any characters, or none. `orders.*` is every topic that begins with
/// `orders.`, `*` is every topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPattern(String);

/// Why a text is no [`TopicPattern`].
#[derive(Debug, thiserror::Error)]
#[error(
    "a topic pattern has 1 to {MAX_NAME_CHARS} characters, none of them U+0000; a * stands for any characters"
)]
pub struct PatternError;

impl TopicPattern {
    /// Whether the topic is one of them.
    pub fn matches(&self, topic: &str) -> bool {
        let mut parts = self.0.split('*');
        // A split has at least one part.
        let Some(mut rest) = parts.next().and_then(|first| topic.strip_prefix(first)) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            // The first place is as good as any later one: what follows has the more room.
            match rest.find(part) {
                Some(place) => rest = &rest[place + part.len()..],
                None => return false,
            }
        }
        true
    }

    pub(super) fn is_everything(&self) -> bool {
        self.0.chars().all(|c| c == '*')
    }
}

impl TryFrom<String> for TopicPattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        let fits = (1..=MAX_NAME_CHARS).contains(&text.chars().count()) && !text.contains('\0');
        fits.then_some(Self(text)).ok_or(PatternError)
    }
}

impl FromStr for TopicPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::try_from(text.to_owned())
    }
}

impl From<TopicPattern> for String {
    fn from(pattern: TopicPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one key allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The key's id, which is no secret.
    pub id: String,
    scopes: Vec<Scope>,
    topics: Vec<TopicPattern>,
    every_topic: bool,
}

impl Grant {
    /// These scopes for these topics; [`Scope::Admin`] for all topics.
    pub fn new(id: String, scopes: Vec<Scope>, topics: Vec<TopicPattern>) -> Self {
        let every_topic = scopes.contains(&Scope::Admin) || topics.iter().any(TopicPattern::is_everything);
        Self {
            id,
            scopes,
            topics,
            every_topic,
        }
    }

    /// Whether the key has this scope, for some topic at least.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether its scopes hold for every topic.
    pub fn has_every_topic(&self) -> bool {
        self.every_topic
    }

    /// Whether its scopes hold for this topic.
    pub fn has_topic(&self, topic: &str) -> bool {
        self.every_topic || self.topics.iter().any(|pattern| pattern.matches(topic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> TopicPattern {
        text.parse().expect("a pattern")
    }

    #[test]
    fn a_star_stands_for_any_characters_and_everything_else_for_itself() {
        for (text, yes, no) in [
            (
                "orders",
                &["orders"][..],
                &["order", "orders.eu", "", "Orders"][..],
            ),
            (
                "orders.*",
                &["orders.", "orders.eu", "orders.eu.de"],
                &["orders", "my.orders.eu"],
            ),
            ("*", &["", "a", "a.b"], &[]),
            ("*.eu", &["orders.eu", ".eu"], &["orders.eu.de", "eu"]),
            (
                "a*b*c",
                &["abc", "a1b2c", "abbc", "aXbcbc"],
                &["ab", "ac", "abcd", "xabc"],
            ),
            ("a*a", &["aa", "aba"], &["a"]),
            ("*ü*", &["für"], &["fur"]),
        ] {
            for topic in yes {
                assert!(pattern(text).matches(topic), "{text} {topic}");
            }
            for topic in no {
                assert!(!pattern(text).matches(topic), "{text} {topic}");
            }
        }
    }

    /// The definition, at the price of exponential time.
    fn matches_slowly(pattern: &[char], topic: &[char]) -> bool {
        match pattern.split_first() {
            None => topic.is_empty(),
            Some((&'*', rest)) => (0..=topic.len()).any(|skipped| matches_slowly(rest, &topic[skipped..])),
            Some((first, rest)) => topic.first() == Some(first) && matches_slowly(rest, &topic[1..]),
        }
    }

    proptest! {
        #[test]
        fn matching_is_what_it_is_defined_to_be(text in "[ab*]{1,6}", topic in "[ab]{0,8}") {
            let slowly = matches_slowly(
                &text.chars().collect::<Vec<_>>(),
                &topic.chars().collect::<Vec<_>>(),
            );
            prop_assert_eq!(pattern(&text).matches(&topic), slowly);
        }
    }

    #[test]
    fn an_admin_has_every_scope_for_every_topic() {
        let grant = Grant::new("a".into(), vec![Scope::Admin], vec![pattern("orders")]);
        assert!(grant.has(Scope::Publish) && grant.has(Scope::Read));
        assert!(grant.has_every_topic() && grant.has_topic("payments"));
    }

    #[test]
    fn a_grant_is_for_its_scopes_and_topics_only() {
        let grant = Grant::new("a".into(), vec![Scope::Read], vec![pattern("a.*"), pattern("b")]);
        assert!(grant.has(Scope::Read) && !grant.has(Scope::Publish) && !grant.has(Scope::Admin));
        assert!(grant.has_topic("a.1") && grant.has_topic("b") && !grant.has_topic("c"));
        assert!(!grant.has_every_topic());
    }
}
