//! The name of this process: in lease rows, attempt records and circuit events.

/// Characters of the host's name that are kept.
const HOST_CHARS_MAX: usize = 40;

/// `<host name>-<6 random hex digits>`: two processes on one host differ, and so do two lives of one.
pub fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let [a, b, c, ..] = crate::random::bytes10();
    format!("{}-{a:02x}{b:02x}{c:02x}", clean(&host))
}

fn clean(host: &str) -> String {
    let kept: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
        .take(HOST_CHARS_MAX)
        .collect();
    if kept.is_empty() { "pod".to_owned() } else { kept.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_differ() {
        assert_eq!(clean("Web-1.example\n"), "web-1.example");
        assert_eq!(clean("\u{e9}\n"), "pod");
        assert_eq!(clean(&"x".repeat(100)).len(), HOST_CHARS_MAX);
        assert_ne!(name(), name());
    }
}
