//! Whose request it is behind proxies: the client's address out of `X-Forwarded-For` or `Forwarded` (RFC 7239), each
//! proxy on the way being an operator's own. Used by the listeners, for counting wrong keys and for logs.
//!
//! Each proxy writes the address that it was called from at the *end* of the list, so only the end can be believed, as
//! far as trusted proxies wrote it: the list is read from the right, up to the first address that is none of them.
//! What stands before that is whatever the client sent.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::address::Network;

/// Proxies on a request's way that are read at most.
const HOPS_MAX: usize = 32;

/// The header in which proxies say who called them. One is read only: a proxy that writes the one passes on the other
/// as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `X-Forwarded-For: client, proxy`.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=client, for="[2001:db8::1]:4711"` (RFC 7239).
    Forwarded,
}

impl ProxyHeader {
    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

/// A name that is neither header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be x-forwarded-for or forwarded")]
pub struct UnknownHeader;

impl FromStr for ProxyHeader {
    type Err = UnknownHeader;

    fn from_str(text: &str) -> Result<Self, UnknownHeader> {
        [Self::XForwardedFor, Self::Forwarded]
            .into_iter()
            .find(|header| header.name().eq_ignore_ascii_case(text))
            .ok_or(UnknownHeader)
    }
}

/// The proxies whose word is taken; by default nobody's. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    networks: Arc<[Network]>,
    header: ProxyHeader,
}

impl TrustedProxies {
    /// Proxies in these networks, and where they write.
    pub fn new(networks: Vec<Network>, header: ProxyHeader) -> Self {
        Self { networks: networks.into(), header }
    }

    /// The header that is read.
    pub fn header(&self) -> ProxyHeader {
        self.header
    }

    /// Whether the word of `ip` is taken.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.networks.iter().any(|network| network.contains(&ip))
    }

    /// Who sent a request that came from `peer`, with these values of [`TrustedProxies::header`] in their order. Where
    /// trusted proxies name nobody whom they were called by, it is the last of them that is known.
    pub fn client<'a, I>(&self, peer: IpAddr, values: I) -> IpAddr
    where
        I: IntoIterator<Item = &'a [u8]>,
        I::IntoIter: DoubleEndedIterator,
    {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        for element in values.into_iter().rev().flat_map(FromTheRight).take(HOPS_MAX) {
            let named = match self.header {
                ProxyHeader::XForwardedFor => std::str::from_utf8(element).ok().and_then(node),
                ProxyHeader::Forwarded => forwarded_for(element),
            };
            // `unknown`, a hidden name or nonsense: who is behind it nobody says.
            let Some(named) = named else { return client };
            client = named;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }
}

/// Elements of a list between commas, from the last one. A comma within quotes is none: seen from the right, so that a
/// quote which a client left open on the left swallows nothing.
struct FromTheRight<'a>(&'a [u8]);

impl<'a> Iterator for FromTheRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.0.is_empty() {
            let (mut quoted, mut start) = (false, 0);
            for (at, byte) in self.0.iter().enumerate().rev() {
                match byte {
                    b'"' if !is_escaped(&self.0[..at]) => quoted = !quoted,
                    b',' if !quoted => {
                        start = at + 1;
                        break;
                    }
                    _ => {}
                }
            }
            let element = self.0[start..].trim_ascii();
            self.0 = &self.0[..start.saturating_sub(1)];
            // Empty elements are allowed, and are none (RFC 9110, 5.6.1).
            if !element.is_empty() {
                return Some(element);
            }
        }
        None
    }
}

/// Whether what follows `before` is escaped: an odd number of backslashes stands before it.
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The `for` of an element of `Forwarded`; none where there are two, or where it is no address.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let element = std::str::from_utf8(element).ok()?;
    let mut found = None;
    let mut rest = element;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after)?;
        if name.trim().eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
        rest = match after.trim_start() {
            "" => "",
            after => after.strip_prefix(';')?,
        };
    }
    node(found?)
}

/// The value at the start of `text`, without quotes, and what follows. Escapes are left as they are: no address has one.
fn value(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim_end(), &text[end..]));
    };
    let end = quoted.bytes().enumerate().find(|(at, byte)| *byte == b'"' && !is_escaped(&quoted.as_bytes()[..*at]))?.0;
    Some((&quoted[..end], &quoted[end + 1..]))
}

/// An address with or without a port; an IPv6 address with or without brackets.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let ip = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| bracketed(text).map(IpAddr::from))
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusting(networks: &[&str], header: ProxyHeader) -> TrustedProxies {
        TrustedProxies::new(networks.iter().map(|n| n.parse().unwrap()).collect(), header)
    }

    fn client(header: ProxyHeader, values: &[&str]) -> String {
        let proxies = trusting(&["10.0.0.0/8", "fd00::/8"], header);
        proxies.client(ip("10.0.0.1"), values.iter().map(|v| v.as_bytes())).to_string()
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let values = [&b"192.0.2.7"[..]];
        assert_eq!(TrustedProxies::default().client(ip("10.0.0.1"), values), ip("10.0.0.1"));
        let proxies = trusting(&["10.0.0.0/8"], ProxyHeader::XForwardedFor);
        assert_eq!(proxies.client(ip("192.0.2.1"), values), ip("192.0.2.1"), "a client that calls itself another");
        assert_eq!(proxies.client(ip("::ffff:10.0.0.1"), values), ip("192.0.2.7"));
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy_counts() {
        let x = |values: &[&str]| client(ProxyHeader::XForwardedFor, values);
        assert_eq!(x(&["192.0.2.7"]), "192.0.2.7");
        assert_eq!(x(&["198.51.100.9, 192.0.2.7"]), "192.0.2.7", "what the client sent is not believed");
        assert_eq!(x(&["198.51.100.9,192.0.2.7 , 10.1.1.1,10.2.2.2"]), "192.0.2.7");
        assert_eq!(x(&["198.51.100.9", "192.0.2.7", "10.2.2.2"]), "192.0.2.7", "lines of a header are one list");
        assert_eq!(x(&["10.9.9.9, 10.1.1.1"]), "10.9.9.9", "a client among the proxies");
        assert_eq!(x(&["192.0.2.7, , "]), "192.0.2.7");
        assert_eq!(x(&["192.0.2.7:4711"]), "192.0.2.7");
        assert_eq!(x(&["2001:db8::7, fd00::1"]), "2001:db8::7");
        assert_eq!(x(&["[2001:db8::7]:4711"]), "2001:db8::7");
        assert_eq!(x(&["::ffff:192.0.2.7"]), "192.0.2.7");
        for nobody in [&[][..], &[""], &["unknown"], &["192.0.2.7, nonsense"], &["192.0.2.7;"], &["192.0.2.07.1"]] {
            assert_eq!(x(nobody), "10.0.0.1", "{nobody:?}");
        }
        assert_eq!(x(&["192.0.2.7, unknown, 10.1.1.1"]), "10.1.1.1");
    }

    #[test]
    fn forwarded_is_read_as_the_rfc_has_it() {
        let f = |values: &[&str]| client(ProxyHeader::Forwarded, values);
        assert_eq!(f(&["for=192.0.2.7"]), "192.0.2.7");
        assert_eq!(f(&["For=\"192.0.2.7:47011\";proto=https; by=10.0.0.1"]), "192.0.2.7");
        assert_eq!(
            f(&["for=198.51.100.9, proto=http;for=\"[2001:db8:cafe::17]:4711\", for=10.1.1.1"]),
            "2001:db8:cafe::17"
        );
        assert_eq!(f(&["for=192.0.2.7;host=\"a, for=198.51.100.9\""]), "192.0.2.7", "a comma within quotes");
        assert_eq!(f(&["for=192.0.2.7;host=\"a\\\", for=198.51.100.9\""]), "192.0.2.7");
        assert_eq!(f(&["for=\"open, for=192.0.2.7"]), "192.0.2.7", "a quote that the client left open");
        for nobody in
            ["for=_hidden", "for=unknown", "for=", "for", "by=192.0.2.7", "for=192.0.2.7;for=192.0.2.8", "192.0.2.7"]
        {
            assert_eq!(f(&[nobody]), "10.0.0.1", "{nobody}");
        }
    }

    #[test]
    fn headers_have_names() {
        assert_eq!("X-Forwarded-For".parse(), Ok(ProxyHeader::XForwardedFor));
        assert_eq!("forwarded".parse(), Ok(ProxyHeader::Forwarded));
        assert_eq!("x-real-ip".parse::<ProxyHeader>(), Err(UnknownHeader));
    }

    fn header() -> impl Strategy<Value = ProxyHeader> {
        prop_oneof![Just(ProxyHeader::XForwardedFor), Just(ProxyHeader::Forwarded)]
    }

    /// Addresses outside 10.0.0.0/8.
    fn stranger() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|[a, b, c, d]| IpAddr::from([if a == 10 { 11 } else { a }, b, c, d])),
            any::<[u16; 8]>().prop_map(|s| IpAddr::from(s).to_canonical()).prop_filter("mapped", |ip| ip.is_ipv6()),
        ]
    }

    fn proxy() -> impl Strategy<Value = IpAddr> {
        any::<[u8; 3]>().prop_map(|[b, c, d]| IpAddr::from([10, b, c, d]))
    }

    /// As a proxy writes it.
    fn written(header: ProxyHeader, ip: IpAddr, port: Option<u16>) -> String {
        let node = match port {
            Some(port) => SocketAddr::new(ip, port).to_string(),
            None if header == ProxyHeader::Forwarded && ip.is_ipv6() => format!("[{ip}]"),
            None => ip.to_string(),
        };
        match header {
            ProxyHeader::XForwardedFor => node,
            ProxyHeader::Forwarded => format!("for=\"{node}\";proto=https"),
        }
    }

    proptest! {
        /// Whatever a client sends, trusted proxies that append the addresses that they see make it known.
        #[test]
        fn what_a_client_sends_changes_nothing(
            header in header(), sent in prop::option::of("[ -~]{0,40}"), from in stranger(), port in any::<Option<u16>>(),
            proxies in prop::collection::vec(proxy(), 1..6), lines in any::<bool>(),
        ) {
            let trusted = trusting(&["10.0.0.0/8"], header);
            let (last, seen) = proxies.split_last().unwrap();
            let mut list: Vec<String> = sent.into_iter().collect();
            list.push(written(header, from, port));
            list.extend(seen.iter().map(|ip| written(header, *ip, None)));
            let values = if lines { list } else { vec![list.join(", ")] };
            prop_assert_eq!(trusted.client(*last, values.iter().map(String::as_bytes)), from);
        }

        /// Who is not trusted is who it is, and any bytes give some answer.
        #[test]
        fn any_bytes_are_read(
            header in header(), peer in any::<[u8; 4]>(),
            values in prop::collection::vec(prop::collection::vec(prop_oneof![any::<u8>(), Just(b','), Just(b'"'), Just(b'\\')], 0..60), 0..4),
        ) {
            let peer = IpAddr::from(peer);
            let values = || values.iter().map(Vec::as_slice);
            prop_assert_eq!(TrustedProxies::new(Vec::new(), header).client(peer, values()), peer);
            let all = trusting(&["0.0.0.0/0", "::/0"], header);
            let found = all.client(peer, values());
            prop_assert!(found == peer || values().next().is_some());
        }
    }
}
