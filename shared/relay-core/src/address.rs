//! Which addresses may be called: the guard against server-side request forgery. Step 9 of an event's way. Looked at
//! when an endpoint is saved, and again for every address that a name resolves to when connecting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// Characters of a URL at most.
pub const URL_CHARS_MAX: usize = 2048;

/// IPv4 ranges that are not the public internet, with where they are set aside.
const SPECIAL_V4: [(&str, &str); 16] = [
    ("0.0.0.0/8", "this network (RFC 791)"),
    ("10.0.0.0/8", "private (RFC 1918)"),
    ("100.64.0.0/10", "carrier-grade NAT (RFC 6598)"),
    ("127.0.0.0/8", "loopback (RFC 1122)"),
    ("169.254.0.0/16", "link-local, cloud metadata (RFC 3927)"),
    ("172.16.0.0/12", "private (RFC 1918)"),
    ("192.0.0.0/24", "protocol assignments (RFC 6890)"),
    ("192.0.2.0/24", "documentation (RFC 5737)"),
    ("192.31.196.0/24", "AS112 (RFC 7535)"),
    ("192.88.99.0/24", "6to4 relays (RFC 7526)"),
    ("192.168.0.0/16", "private (RFC 1918)"),
    ("192.175.48.0/24", "AS112 (RFC 7534)"),
    ("198.18.0.0/15", "benchmarking (RFC 2544)"),
    ("198.51.100.0/24", "documentation (RFC 5737)"),
    ("203.0.113.0/24", "documentation (RFC 5737)"),
    ("224.0.0.0/3", "multicast, reserved, broadcast (RFC 5771, RFC 1112)"),
];

/// Within 2000::/3, the only IPv6 range that is called at all.
const SPECIAL_V6: [(&str, &str); 7] = [
    ("2001::/23", "protocol assignments, Teredo (RFC 2928, RFC 4380)"),
    ("2001:db8::/32", "documentation (RFC 3849)"),
    ("2002::/16", "6to4 (RFC 3056)"),
    ("2620:4f:8000::/48", "AS112 (RFC 7534)"),
    ("3fff::/20", "documentation (RFC 9637)"),
    ("2001:2::/48", "benchmarking (RFC 5180)"),
    ("3ffe::/16", "6bone, returned (RFC 3701)"),
];

/// An address that may not be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address {ip} may not be called: {why}")]
pub struct RefusedAddress {
    /// The address.
    pub ip: IpAddr,
    /// Which range it lies in.
    pub why: &'static str,
}

/// What may be called besides the public internet.
#[derive(Clone, Debug)]
pub struct AddressPolicy {
    allow: Vec<IpNet>,
    special_v4: Vec<(IpNet, &'static str)>,
    special_v6: Vec<(IpNet, &'static str)>,
    global_v6: IpNet,
}

impl AddressPolicy {
    /// The public internet, and these networks.
    pub fn new(allow: Vec<IpNet>) -> Self {
        let parse = |text: &str| text.parse::<IpNet>().expect("the tables of this file hold networks");
        Self {
            allow,
            special_v4: SPECIAL_V4.iter().map(|(net, why)| (parse(net), *why)).collect(),
            special_v6: SPECIAL_V6.iter().map(|(net, why)| (parse(net), *why)).collect(),
            global_v6: parse("2000::/3"),
        }
    }

    /// Whether an address may be called.
    pub fn check(&self, ip: IpAddr) -> Result<(), RefusedAddress> {
        let ip = canonical(ip);
        if self.allow.iter().any(|net| net.contains(&ip)) {
            return Ok(());
        }
        let special = match ip {
            IpAddr::V4(_) => &self.special_v4,
            IpAddr::V6(_) if !self.global_v6.contains(&ip) => {
                return Err(RefusedAddress { ip, why: "not global unicast (RFC 4291)" });
            }
            IpAddr::V6(_) => &self.special_v6,
        };
        match special.iter().find(|(net, _)| net.contains(&ip)) {
            Some((_, why)) => Err(RefusedAddress { ip, why }),
            None => Ok(()),
        }
    }
}

/// IPv4 in IPv6's clothes (mapped, RFC 4291 2.5.5.2; NAT64, RFC 6052) is judged as IPv4.
fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), v6.segments()) {
            (Some(v4), _) => IpAddr::V4(v4),
            (None, [0x64, 0xff9b, 0, 0, 0, 0, high, low]) => IpAddr::V4(nat64(high, low)),
            _ => IpAddr::V6(v6),
        },
    }
}

fn nat64(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

/// Why a URL can't be an endpoint's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// Over [`URL_CHARS_MAX`].
    #[error("a URL has at most 2048 characters")]
    TooLong,
    /// Not a URL.
    #[error("not a URL: {0}")]
    Syntax(String),
    /// Neither http nor https.
    #[error("the URL must start with http:// or https://")]
    Scheme,
    /// No host.
    #[error("the URL has no host")]
    Host,
    /// A host that may not be called.
    #[error("{0}; an operator can allow its network with --allow-network")]
    Refused(#[from] RefusedAddress),
}

/// Checks an endpoint's URL as far as it can be without asking the DNS. Every spelling of an IP address that the URL
/// standard knows is normalised first.
pub fn check_url(text: &str, policy: &AddressPolicy) -> Result<Url, UrlProblem> {
    if text.chars().count() > URL_CHARS_MAX {
        return Err(UrlProblem::TooLong);
    }
    let url = Url::parse(text).map_err(|e| UrlProblem::Syntax(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UrlProblem::Scheme);
    }
    if url.as_str().len() > URL_CHARS_MAX {
        return Err(UrlProblem::TooLong);
    }
    match url.host() {
        None => return Err(UrlProblem::Host),
        Some(Host::Ipv4(ip)) => policy.check(IpAddr::V4(ip))?,
        Some(Host::Ipv6(ip)) => policy.check(IpAddr::V6(ip))?,
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            if name.is_empty() {
                return Err(UrlProblem::Host);
            }
            if name == "localhost" || name.ends_with(".localhost") {
                policy
                    .check(IpAddr::V4(Ipv4Addr::LOCALHOST))
                    .or_else(|e| policy.check(IpAddr::V6(Ipv6Addr::LOCALHOST)).map_err(|_| e))?;
            }
        }
    }
    Ok(url)
}

/// A URL for people and logs: without password, and without the values of its query.
pub fn redact(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else {
        return "(not a URL)".to_owned();
    };
    if url.password().is_some() {
        let _ = url.set_password(Some("…"));
    }
    if url.query().is_some() {
        url.set_query(Some("…"));
    }
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(ip: &str) -> bool {
        AddressPolicy::new(Vec::new()).check(ip.parse().unwrap()).is_err()
    }

    #[test]
    fn the_edges_of_the_special_ranges() {
        let no = [
            "0.0.0.0",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.1.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "::7f00:1",
            "100::1",
            "3fff::1",
        ];
        let yes = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ];
        assert_eq!(no.iter().filter(|ip| !refused(ip)).collect::<Vec<_>>(), Vec::<&&str>::new());
        assert_eq!(yes.iter().filter(|ip| refused(ip)).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn an_operator_can_allow_a_network() {
        let policy = AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]);
        assert!(policy.check("127.0.0.1".parse().unwrap()).is_ok());
        assert!(policy.check("::ffff:127.0.0.1".parse().unwrap()).is_ok());
        assert!(policy.check("10.0.0.1".parse().unwrap()).is_err());
        assert!(check_url("http://localhost:9000/", &policy).is_ok());
    }

    #[test]
    fn every_spelling_of_a_loopback_address_is_refused() {
        let policy = AddressPolicy::new(Vec::new());
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://localhost/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://user@127.0.0.1/",
            "http://127.0.0.1./",
        ] {
            assert!(matches!(check_url(url, &policy), Err(UrlProblem::Refused(_))), "{url}");
        }
        assert_eq!(check_url("ftp://example.com/", &policy), Err(UrlProblem::Scheme));
        assert!(matches!(check_url("nonsense", &policy), Err(UrlProblem::Syntax(_))));
        assert_eq!(check_url(&format!("http://example.com/{}", "x".repeat(2048)), &policy), Err(UrlProblem::TooLong));
        assert!(check_url("https://example.com/hook?a=b", &policy).is_ok());
    }

    #[test]
    fn urls_are_shown_without_their_secrets() {
        assert_eq!(redact("https://u:secret@example.com/p?token=abc#f"), "https://u:%E2%80%A6@example.com/p?%E2%80%A6");
    }

    proptest! {
        #[test]
        fn mapped_addresses_are_judged_as_what_they_map(ip: [u8; 4]) {
            let policy = AddressPolicy::new(Vec::new());
            let v4 = Ipv4Addr::from(ip);
            prop_assert_eq!(policy.check(IpAddr::V4(v4)).is_ok(), policy.check(IpAddr::V6(v4.to_ipv6_mapped())).is_ok());
        }

        #[test]
        fn no_url_makes_it_panic(text in "\\PC{0,60}") {
            let _ = check_url(&text, &AddressPolicy::new(Vec::new()));
            let _ = redact(&text);
        }
    }
}
