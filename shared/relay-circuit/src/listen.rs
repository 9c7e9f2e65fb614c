//! Changes that other pods announce: `<endpoint> <word> <milliseconds>` on one channel. May get lost, so everything is
//! polled too.

use std::time::Duration;

use relay_core::ids::EndpointId;

/// What was announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Announced {
    Open(Duration),
    Closed,
    Probing(Duration),
    HalfOpen,
    Waiting(Duration),
}

/// Reads a message.
pub(crate) fn parse(text: &str) -> Option<(EndpointId, Announced)> {
    let mut words = text.split(' ');
    let endpoint = words.next()?.parse().ok()?;
    let word = words.next()?;
    let left = Duration::from_millis(words.next()?.parse().ok()?);
    let announced = match word {
        "open" => Announced::Open(left),
        "closed" => Announced::Closed,
        "probing" => Announced::Probing(left),
        "half_open" => Announced::HalfOpen,
        "waiting" => Announced::Waiting(left),
        _ => return None,
    };
    Some((endpoint, announced))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn announcements_are_read_and_nonsense_is_not() {
        let endpoint = EndpointId(Uuid::from_u128(5));
        assert_eq!(
            parse(&format!("{endpoint} open 1500")),
            Some((endpoint, Announced::Open(Duration::from_millis(1500))))
        );
        assert_eq!(parse(&format!("{endpoint} closed 0")), Some((endpoint, Announced::Closed)));
        for bad in [
            "",
            "x open 1",
            &format!("{endpoint} melted 1"),
            &format!("{endpoint} open"),
            &format!("{endpoint} open x"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
