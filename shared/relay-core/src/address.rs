//! Which addresses may be called, and which URLs an endpoint may have: the guard against server-side request
//! forgery. Endpoints are checked when saved ([`check_url`]); the deliverer asks [`AddressPolicy::check`] for every
//! address it is about to connect to, so a name that changes its address gains nothing.
//!
//! Refused is what the IANA special-purpose registries name, whether globally reachable or not (nobody takes
//! webhooks there), and addresses at which clouds answer their own machines. Of IPv6 only 2000::/3 is left. What
//! an operator allows by CIDR wins over all of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// A network in CIDR notation, as operators allow them.
pub use ipnet::IpNet as Network;

/// Characters of a URL at most, as given and as normalised.
pub const URL_CHARS_MAX: usize = 2048;
/// Characters of a host name at most (RFC 1035).
const HOST_CHARS_MAX: usize = 253;

/// Refused IPv4 ranges: address, prefix length, why. The most telling reason stands first.
const REFUSED_V4: &[([u8; 4], u8, &str)] = &[
    ([127, 0, 0, 0], 8, "loopback (RFC 1122)"),
    ([10, 0, 0, 0], 8, "private (RFC 1918)"),
    ([172, 16, 0, 0], 12, "private (RFC 1918)"),
    ([192, 168, 0, 0], 16, "private (RFC 1918)"),
    ([169, 254, 169, 254], 32, "cloud metadata"),
    ([169, 254, 0, 0], 16, "link-local (RFC 3927)"),
    ([100, 64, 0, 0], 10, "shared address space (RFC 6598)"),
    ([168, 63, 129, 16], 32, "cloud platform"),
    ([0, 0, 0, 0], 8, "this network (RFC 791)"),
    ([192, 0, 0, 0], 24, "protocol assignments (RFC 6890)"),
    ([192, 0, 2, 0], 24, "documentation (RFC 5737)"),
    ([198, 51, 100, 0], 24, "documentation (RFC 5737)"),
    ([203, 0, 113, 0], 24, "documentation (RFC 5737)"),
    ([192, 31, 196, 0], 24, "AS112 (RFC 7535)"),
    ([192, 175, 48, 0], 24, "AS112 (RFC 7534)"),
    ([192, 52, 193, 0], 24, "automatic multicast tunneling (RFC 7450)"),
    ([192, 88, 99, 0], 24, "6to4 relay anycast (RFC 7526)"),
    ([198, 18, 0, 0], 15, "benchmarking (RFC 2544)"),
    ([224, 0, 0, 0], 4, "multicast (RFC 5771)"),
    ([255, 255, 255, 255], 32, "broadcast (RFC 919)"),
    ([240, 0, 0, 0], 4, "reserved (RFC 1112)"),
];

/// Refused IPv6 ranges. Those outside 2000::/3 are here for their reasons only.
const REFUSED_V6: &[([u16; 8], u8, &str)] = &[
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback (RFC 4291)"),
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified (RFC 4291)"),
    ([0, 0, 0, 0, 0, 0, 0, 0], 96, "IPv4-compatible (RFC 4291)"),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "local-use NAT64 (RFC 8215)"),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "discard-only (RFC 6666)"),
    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, "cloud metadata"),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "unique local (RFC 4193)"),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local (RFC 4291)"),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "site-local (RFC 3879)"),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast (RFC 4291)"),
    ([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, "segment routing (RFC 9602)"),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, "Teredo (RFC 4380)"),
    ([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, "benchmarking (RFC 5180)"),
    ([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, "ORCHID (RFC 4843)"),
    ([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, "ORCHIDv2 (RFC 7343)"),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "protocol assignments (RFC 2928)"),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation (RFC 3849)"),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation (RFC 9637)"),
    ([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, "6bone, returned (RFC 3701)"),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4 (RFC 3056)"),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "AS112 (RFC 7534)"),
];
/// What is left of IPv6 (RFC 4291).
const GLOBAL_UNICAST_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// An address that may not be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{ip} may not be called: {why}")]
pub struct RefusedAddress {
    /// The address; one that stands for an IPv4 address in that form.
    pub ip: IpAddr,
    /// Its range, with where that is defined.
    pub why: &'static str,
}

/// Which addresses may be called. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    allow: Arc<[Network]>,
}

impl AddressPolicy {
    /// Public addresses, and what `allow` names.
    pub fn new(allow: Vec<Network>) -> Self {
        Self { allow: allow.into() }
    }

    /// Whether `ip` may be called, and why not. An IPv6 address that stands for an IPv4 address is judged as that.
    pub fn check(&self, ip: IpAddr) -> Result<(), RefusedAddress> {
        if self.names(ip) {
            return Ok(());
        }
        let ip = canonical(ip);
        let why = match ip {
            IpAddr::V4(ip) => refused_v4(ip),
            IpAddr::V6(ip) => refused_v6(ip),
        };
        why.map_or(Ok(()), |why| Err(RefusedAddress { ip, why }))
    }

    /// Whether `ip` lies in a network that was allowed by name.
    pub fn names(&self, ip: IpAddr) -> bool {
        let ip = canonical(ip);
        self.allow.iter().any(|net| net.contains(&ip))
    }

    /// Whether `ip` may be called.
    pub fn permits(&self, ip: IpAddr) -> bool {
        self.check(ip).is_ok()
    }
}

/// IPv4 in IPv6's clothes: mapped (RFC 4291, 2.5.5.2), or behind the well-known NAT64 prefix (RFC 6052), which is
/// how networks without IPv4 reach everything that has no IPv6.
fn canonical(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into(),
            _ => IpAddr::V6(v6),
        },
        v4 => v4,
    }
}

fn refused_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let within = |(range, bits, _): &&([u8; 4], u8, _)| Ipv4Net::new_assert((*range).into(), *bits).contains(&ip);
    REFUSED_V4.iter().find(within).map(|(.., why)| *why)
}

fn refused_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let within = |(range, bits, _): &&([u16; 8], u8, _)| Ipv6Net::new_assert((*range).into(), *bits).contains(&ip);
    match REFUSED_V6.iter().find(within) {
        Some((.., why)) => Some(why),
        None if GLOBAL_UNICAST_V6.contains(&ip) => None,
        None => Some("not global unicast (RFC 4291)"),
    }
}

/// Why a text can't be an endpoint's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// Over [`URL_CHARS_MAX`].
    #[error("must have at most 2048 characters")]
    TooLong,
    /// A line break, a NUL or the like.
    #[error("must not contain control characters")]
    ControlCharacter,
    /// Not a URL.
    #[error("is not a valid URL: {0}")]
    Syntax(#[from] url::ParseError),
    /// Neither http nor https.
    #[error("must start with http:// or https://")]
    Scheme,
    /// No host, or one that no name server could know.
    #[error("must have a valid host")]
    Host,
    /// Port 0.
    #[error("must not have port 0")]
    Port,
    /// The host is an address that may not be called.
    #[error("{0} (an operator can allow networks with --allow-network)")]
    Refused(#[from] RefusedAddress),
}

/// Checks and normalises an endpoint's URL. User and password are allowed (they become Basic authentication);
/// show such a URL with [`redact`] only. Names are looked at again by address, when they are resolved.
pub fn check_url(text: &str, policy: &AddressPolicy) -> Result<Url, UrlProblem> {
    if text.chars().count() > URL_CHARS_MAX {
        return Err(UrlProblem::TooLong);
    }
    // The parser would drop some of them without a word.
    if text.chars().any(char::is_control) {
        return Err(UrlProblem::ControlCharacter);
    }
    let mut url = Url::parse(text)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(UrlProblem::Scheme);
    }
    // The parser has turned every spelling of an address (0x7f.1, 2130706433, [::ffff:7f00:1]) into the address.
    let name = match url.host() {
        None => return Err(UrlProblem::Host),
        Some(Host::Ipv4(ip)) => return with_address(url, ip.into(), policy),
        Some(Host::Ipv6(ip)) => return with_address(url, ip.into(), policy),
        Some(Host::Domain(name)) => name.strip_suffix('.').unwrap_or(name).to_owned(),
    };
    if name.len() > HOST_CHARS_MAX || name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Err(UrlProblem::Host);
    }
    url.set_host(Some(&name))?;
    if is_localhost(&name) && !policy.permits(Ipv6Addr::LOCALHOST.into()) {
        policy.check(Ipv4Addr::LOCALHOST.into())?;
    }
    finished(url)
}

fn with_address(url: Url, ip: IpAddr, policy: &AddressPolicy) -> Result<Url, UrlProblem> {
    policy.check(ip)?;
    finished(url)
}

fn finished(url: Url) -> Result<Url, UrlProblem> {
    if url.port() == Some(0) {
        return Err(UrlProblem::Port);
    }
    if url.as_str().len() > URL_CHARS_MAX {
        return Err(UrlProblem::TooLong);
    }
    Ok(url)
}

/// Names that are loopback by definition (RFC 6761); in lower case, as the parser makes them.
pub fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// A URL for logs and errors: without user and password, values of the query and fragment, each of which may be
/// a credential.
pub fn redact(url: &str) -> String {
    const HIDDEN: &str = "***";
    let Ok(mut url) = Url::parse(url) else { return "(not a URL)".to_owned() };
    if !url.username().is_empty() || url.password().is_some() {
        // Both fail only for URLs that can't have a user, which then have none to hide.
        let hidden = url.set_password(None).and_then(|()| url.set_username(HIDDEN));
        if hidden.is_err() {
            return "(not a URL)".to_owned();
        }
    }
    if let Some(query) = url.query() {
        let names = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, _)) => format!("{name}={HIDDEN}"),
            None => HIDDEN.to_owned(),
        });
        let hidden = names.collect::<Vec<_>>().join("&");
        url.set_query(Some(&hidden));
    }
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests;
