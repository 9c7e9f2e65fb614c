//! Which event types an endpoint wants. Patterns are those of NATS subjects: tokens separated by dots, `*` for
//! exactly one token, `>` as the last token for one or more. An empty filter wants everything.

use serde::{Deserialize, Serialize};

/// Patterns in one filter at most.
pub const PATTERNS_MAX: usize = 100;
/// Characters of one pattern at most.
pub const PATTERN_CHARS_MAX: usize = 255;

/// Why a list is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pattern {index}: {why}")]
pub struct FilterError {
    /// Which pattern, from 0; the first one that is wrong.
    pub index: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A checked filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct TypeFilter {
    patterns: Vec<String>,
}

impl TypeFilter {
    /// Checks the patterns.
    pub fn parse(patterns: &[String]) -> Result<Self, FilterError> {
        if patterns.len() > PATTERNS_MAX {
            return Err(FilterError { index: PATTERNS_MAX, why: "at most 100 patterns are allowed" });
        }
        for (index, pattern) in patterns.iter().enumerate() {
            check(pattern).map_err(|why| FilterError { index, why })?;
        }
        Ok(Self { patterns: patterns.to_vec() })
    }

    /// Whether an event of this type is wanted.
    pub fn matches(&self, event_type: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|p| pattern_matches(p, event_type))
    }

    /// The patterns, as they were given.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }
}

impl TryFrom<Vec<String>> for TypeFilter {
    type Error = FilterError;
    fn try_from(patterns: Vec<String>) -> Result<Self, FilterError> {
        Self::parse(&patterns)
    }
}

impl From<TypeFilter> for Vec<String> {
    fn from(filter: TypeFilter) -> Self {
        filter.patterns
    }
}

/// Whether the pattern names exactly one type.
pub fn is_exact(pattern: &str) -> bool {
    !pattern.split('.').any(|t| t == "*" || t == ">")
}

fn check(pattern: &str) -> Result<(), &'static str> {
    if pattern.is_empty() {
        return Err("a pattern must not be empty");
    }
    if pattern.len() > PATTERN_CHARS_MAX {
        return Err("a pattern has at most 255 characters");
    }
    if !pattern.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a pattern consists of visible ASCII characters");
    }
    let mut tokens = pattern.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "" => return Err("a pattern must not have empty tokens"),
            "*" => {}
            ">" if tokens.peek().is_some() => return Err("'>' may only be the last token"),
            ">" => {}
            _ if token.contains(['*', '>']) => return Err("'*' and '>' must be tokens of their own"),
            _ => {}
        }
    }
    Ok(())
}

fn pattern_matches(pattern: &str, event_type: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), event_type.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(patterns: &[&str]) -> TypeFilter {
        TypeFilter::parse(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn wildcards_are_those_of_nats() {
        assert!(filter(&[]).matches("anything.at.all"));
        assert!(filter(&["order.created"]).matches("order.created"));
        assert!(!filter(&["order.created"]).matches("order.Created"));
        assert!(filter(&["order.*"]).matches("order.created"));
        assert!(!filter(&["order.*"]).matches("order"));
        assert!(!filter(&["order.*"]).matches("order.item.created"));
        assert!(filter(&["order.>"]).matches("order.item.created"));
        assert!(!filter(&["order.>"]).matches("order"));
        assert!(filter(&["*.created"]).matches("user.created"));
        assert!(filter(&["a", ">"]).matches("x.y"));
        assert!(filter(&["a", "b.*.c"]).matches("b.x.c"));
    }

    #[test]
    fn bad_patterns_say_which_and_why() {
        for bad in ["", "a..b", ".", "a.>.b", "a*", "a.b>", "a b", "é"] {
            let list = ["ok".to_owned(), bad.to_owned()];
            assert_eq!(TypeFilter::parse(&list).unwrap_err().index, 1, "{bad}");
        }
        assert!(TypeFilter::parse(&vec!["a".to_owned(); 100]).is_ok());
        assert!(TypeFilter::parse(&vec!["a".to_owned(); 101]).is_err());
        assert!(TypeFilter::parse(&["a".repeat(255)]).is_ok());
        assert!(TypeFilter::parse(&["a".repeat(256)]).is_err());
    }

    #[test]
    fn a_filter_is_a_list_of_strings_in_json_and_checked_when_read() {
        let json = r#"["order.*","user.created"]"#;
        let read: TypeFilter = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        assert_eq!(read.patterns(), ["order.*", "user.created"]);
        assert!(serde_json::from_str::<TypeFilter>(r#"["a..b"]"#).is_err());
    }

    /// The same rule, written the slow way.
    fn naive(pattern: &[&str], given: &[&str]) -> bool {
        match (pattern, given) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", p @ ..], [_, g @ ..]) => naive(p, g),
            ([a, p @ ..], [b, g @ ..]) if a == b => naive(p, g),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_as_the_slow_rule_does(
            pattern in prop::collection::vec(prop::sample::select(vec!["a", "b", "*"]), 1..4), open: bool,
            given in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..5)
        ) {
            let mut pattern = pattern;
            if open {
                pattern.push(">");
            }
            prop_assert_eq!(filter(&[&pattern.join(".")]).matches(&given.join(".")), naive(&pattern, &given));
        }

        #[test]
        fn any_pattern_of_a_filter_is_enough(
            patterns in prop::collection::vec("[ab*]\\.[ab*](\\.>)?", 1..5), given in "[abc](\\.[abc]){0,3}"
        ) {
            let list: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let each = list.iter().any(|p| filter(&[p]).matches(&given));
            prop_assert_eq!(filter(&list).matches(&given), each);
        }

        #[test]
        fn an_exact_pattern_matches_itself_only(pattern in "[a-c]{1,3}(\\.[a-c]{1,3}){0,3}", other in "[a-c]{1,3}(\\.[a-c]{1,3}){0,3}") {
            prop_assert!(is_exact(&pattern));
            prop_assert_eq!(filter(&[&pattern]).matches(&other), pattern == other);
            prop_assert!(filter(&[&pattern]).matches(&pattern));
        }

        #[test]
        fn no_text_is_too_strange_to_check(pattern: String, given: String) {
            if let Ok(filter) = TypeFilter::parse(&[pattern]) {
                let _ = filter.matches(&given);
            }
        }
    }
}
