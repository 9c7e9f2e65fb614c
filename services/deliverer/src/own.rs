//! Which addresses are this machine's own: a public address of the machine that delivers leads to what listens there,
//! past any firewall that stands in front of it. Used by `resolver`.
//!
//! Only a machine's own address can be bound to, and the kernel is asked each time: interfaces come and go. Addresses
//! that are translated on their way (a cloud's public address) are on no interface and can't be found this way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Addresses for documentation (RFC 5737, RFC 3849), which no machine has.
const NOBODYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Tells this machine's addresses from others.
#[derive(Clone, Copy, Debug)]
pub struct OwnAddresses {
    can_tell: bool,
}

impl OwnAddresses {
    /// Finds out whether the kernel can be asked: one that lets anybody's address be bound to
    /// (`net.ipv4.ip_nonlocal_bind`) would say yes to every address.
    pub fn detect() -> Self {
        let can_tell = !NOBODYS.into_iter().any(bindable);
        if !can_tell {
            tracing::warn!("any address can be bound to on this machine, so deliveries to its own are not refused");
        }
        Self { can_tell }
    }

    /// Whether `ip` is one of this machine's.
    pub fn contains(self, ip: IpAddr) -> bool {
        self.can_tell && bindable(ip)
    }
}

fn bindable(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ones_own_and_strangers_are_not() {
        let own = OwnAddresses { can_tell: true };
        assert!(own.contains(Ipv4Addr::LOCALHOST.into()));
        assert!(NOBODYS.into_iter().all(|ip| own.contains(ip) == bindable(ip)));
        assert!(!OwnAddresses { can_tell: false }.contains(Ipv4Addr::LOCALHOST.into()));
    }
}
