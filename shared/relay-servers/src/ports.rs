//! Free ports for servers that were asked for with port 0.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ServerKind;
use crate::error::ServersError;

/// Ports are taken below the range that Linux gives to outgoing connections (from 32768), so that a server which is killed
/// and started again finds its port free.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;
/// How many are tried.
const TRIES: u32 = 500;

/// Ports that this process has handed out: a listener that is closed again reserves nothing.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A port on 127.0.0.1 that nobody listens on now. Somebody may take it before the server does: the caller tries again.
pub(crate) fn free(kind: ServerKind) -> Result<u16, ServersError> {
    for _ in 0..TRIES {
        // Processes start at different places, so that tests that run side by side don't race for the same ports.
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(step) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range ends below 65536");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(ServersError::NoPort(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let first = free(ServerKind::Nats).unwrap();
        let second = free(ServerKind::Nats).unwrap();
        assert_ne!(first, second);
        assert!((12_000..32_000).contains(&first));
    }
}
