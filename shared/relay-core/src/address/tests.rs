//! Tests of the address table at the edges of its ranges, and of URLs in all their spellings.

use proptest::prelude::*;

use super::*;

fn strict() -> AddressPolicy {
    AddressPolicy::default()
}

fn allowing(nets: &[&str]) -> AddressPolicy {
    AddressPolicy::new(nets.iter().map(|n| n.parse().unwrap()).collect())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn public_addresses_pass() {
    for good in [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.0.3.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "168.63.129.15",
        "2606:4700:4700::1111",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
        "2003::",
        "3ffd:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::",
        "2000::",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ] {
        assert_eq!(strict().check(ip(good)), Ok(()), "{good}");
    }
}

#[test]
fn special_addresses_are_refused_with_their_reason() {
    for (bad, why) in [
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("10.1.2.3", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("169.254.169.254", "metadata"),
        ("169.254.0.1", "link-local"),
        ("100.100.100.200", "shared"),
        ("168.63.129.16", "cloud"),
        ("0.0.0.0", "this network"),
        ("192.0.0.192", "protocol"),
        ("192.0.2.1", "documentation"),
        ("198.19.255.255", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.0", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("::1", "loopback"),
        ("::", "unspecified"),
        ("::7f00:1", "compatible"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("3ffe::1", "6bone"),
        ("64:ff9b:1::1", "local-use NAT64"),
        ("100::1", "discard"),
        ("fd00:ec2::254", "metadata"),
        ("fc00::", "unique local"),
        ("fdff:ffff::1", "unique local"),
        ("fe80::1", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("2001::1", "Teredo"),
        ("2001:1ff:ffff::", "protocol"),
        ("2001:20::1", "ORCHIDv2"),
        ("2001:db8::1", "documentation"),
        ("3fff:fff::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("4000::", "not global"),
        ("1fff::", "not global"),
    ] {
        let refused = strict().check(ip(bad)).unwrap_err();
        assert!(refused.why.contains(why), "{bad}: {}", refused.why);
    }
}

#[test]
fn every_range_is_refused_from_its_first_to_its_last_address() {
    for (range, bits, _) in REFUSED_V4 {
        let net = Ipv4Net::new_assert((*range).into(), *bits);
        assert_eq!(net, net.trunc(), "a range starts at its first address");
        assert!(!strict().permits(net.network().into()) && !strict().permits(net.broadcast().into()), "{net}");
    }
    for (range, bits, _) in REFUSED_V6 {
        let net = Ipv6Net::new_assert((*range).into(), *bits);
        assert_eq!(net, net.trunc(), "a range starts at its first address");
        assert!(!strict().permits(net.network().into()) && !strict().permits(net.broadcast().into()), "{net}");
    }
}

#[test]
fn what_is_allowed_by_cidr_wins() {
    let policy = allowing(&["127.0.0.0/8", "fd00::/8"]);
    assert!(policy.permits(ip("127.0.0.1")));
    assert!(policy.permits(ip("::ffff:127.0.0.1")));
    assert!(policy.permits(ip("fd12::1")));
    assert!(!policy.permits(ip("10.0.0.1")));
    assert!(!policy.permits(ip("::1")));
    assert!(policy.permits(ip("1.1.1.1")));
}

#[test]
fn urls_are_normalised() {
    for (given, wanted) in [
        ("https://Example.COM", "https://example.com/"),
        ("https://example.com.:443/a?b=c#d", "https://example.com/a?b=c#d"),
        ("  http://example.com/x y ", "http://example.com/x%20y"),
        ("http://münchen.example/ü", "http://xn--mnchen-3ya.example/%C3%BC"),
        ("https://user:secret@example.com/", "https://user:secret@example.com/"),
        ("http://8.8.8.8:8080/", "http://8.8.8.8:8080/"),
        ("http://134744072/", "http://8.8.8.8/"),
        ("https://[2606:4700:4700::1111]/", "https://[2606:4700:4700::1111]/"),
    ] {
        assert_eq!(check_url(given, &strict()).unwrap().as_str(), wanted);
    }
}

#[test]
fn private_addresses_are_refused_in_every_spelling() {
    for bad in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://１２７.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::a00:1]/",
        "http://0/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://LOCALHOST.:8080/",
        "http://a.b.localhost/",
        "http://user@127.0.0.1/",
        "http:\\\\127.0.0.1\\",
        "http://0x7F.0X0.0.1/",
        "HTTP://0X7F000001/",
        "http://017700000001/",
        "http://00000177.0.0.01/",
        "http://127.0.1/",
        "http://10.1/",
        "http://0xA9FEA9FE/",
        "http://0251.0376.0251.0376/",
        "http://169.254.43518/",
        "http://169.16689662/",
        "http://0x0/",
        "http://127。0。0。1/",
        "http://①②⑦.0.0.1/",
        "http://example.com@127.0.0.1/",
        "http://example.com:80@127.0.0.1:8080/",
        "http://example.com%40x@127.0.0.1/",
        "http://127.0.0.1?@example.com/",
        "http://127.0.0.1#@example.com/",
        "http://127.0.0.1\\@example.com/",
        "http:127.0.0.1/",
        "http:///127.0.0.1/",
        "http://[::FFFF:7F00:1]/",
        "http://[0:0:0:0:0:ffff:127.0.0.1]/",
        "http://[0000:0000:0000:0000:0000:0000:0000:0001]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[::]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http://[64:FF9B::a9fe:a9fe]/",
        "http://[64:ff9b:1::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2002:a9fe:a9fe::1]/",
        "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
        "http://[2001::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://LocalHost/",
        "http://loc%61lhost/",
        "http://ｌｏｃａｌｈｏｓｔ/",
    ] {
        assert!(matches!(check_url(bad, &strict()), Err(UrlProblem::Refused(_))), "{bad}");
    }
    let dev = allowing(&["127.0.0.0/8"]);
    assert!(check_url("http://localhost:9000/hook", &dev).is_ok());
    assert!(check_url("http://127.1:9000/hook", &dev).is_ok());
    assert!(check_url("http://[::1]:9000/hook", &dev).is_err());
    assert!(check_url("http://localhost/", &allowing(&["::1/128"])).is_ok());
}

#[test]
fn what_is_no_url_of_an_endpoint_says_why() {
    let problem = |text: &str| check_url(text, &strict()).unwrap_err();
    for bad in
        ["ftp://example.com/", "file:///etc/passwd", "mailto:a@example.com", "javascript:alert(1)", "gopher://x/"]
    {
        assert_eq!(problem(bad), UrlProblem::Scheme, "{bad}");
    }
    for bad in
        ["", "example.com", "/path", "http://", "http://[::1", "http://a b/", "http://1.2.3.256/", "http://x:99999/"]
    {
        assert!(matches!(problem(bad), UrlProblem::Syntax(_)), "{bad}: {:?}", problem(bad));
    }
    for bad in ["http://a..b/", "http://./", "http://example.com../", &format!("http://{}/", "a".repeat(64))] {
        assert_eq!(problem(bad), UrlProblem::Host, "{bad}");
    }
    assert_eq!(problem("http://example.com:0/"), UrlProblem::Port);
    assert_eq!(problem("http://exa\nmple.com/"), UrlProblem::ControlCharacter);
    assert_eq!(problem("http://example.com/\0"), UrlProblem::ControlCharacter);
    let long = |n: usize| format!("http://example.com/{}", "a".repeat(n - 19));
    assert!(check_url(&long(2048), &strict()).is_ok());
    assert_eq!(problem(&long(2049)), UrlProblem::TooLong);
    assert_eq!(problem(&format!("http://example.com/{}", "ü".repeat(1000))), UrlProblem::TooLong);
}

#[test]
fn redacted_urls_show_no_credentials() {
    assert_eq!(
        redact("https://user:pass@example.com/hook?token=abc&x=1&bare#frag"),
        "https://***@example.com/hook?token=***&x=***&***"
    );
    assert_eq!(redact("https://token@example.com/"), "https://***@example.com/");
    assert_eq!(redact("https://example.com/a"), "https://example.com/a");
    assert_eq!(redact("no url"), "(not a URL)");
}

proptest! {
    #[test]
    fn ipv4_agrees_with_the_standard_library(bits: u32) {
        let ip = Ipv4Addr::from(bits);
        if ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast()
            || ip.is_documentation() || ip.is_unspecified()
        {
            prop_assert!(!strict().permits(ip.into()));
        }
        prop_assert_eq!(strict().permits(ip.into()), strict().permits(ip.to_ipv6_mapped().into()));
    }

    #[test]
    fn ipv6_outside_global_unicast_is_refused(bits: u128) {
        let ip = Ipv6Addr::from(bits);
        if bits >> 125 != 1 && canonical(ip.into()).is_ipv6() {
            prop_assert!(!strict().permits(ip.into()));
        }
    }

    #[test]
    fn a_literal_in_a_url_is_judged_as_its_address(bits: u32, spelling in 0..4) {
        let [a, b, c, d] = bits.to_be_bytes();
        let host = match spelling {
            0 => format!("{a}.{b}.{c}.{d}"),
            1 => bits.to_string(),
            2 => format!("{bits:#x}"),
            _ => format!("[::ffff:{a}.{b}.{c}.{d}]"),
        };
        let url = check_url(&format!("http://{host}/"), &strict());
        prop_assert_eq!(url.is_ok(), strict().permits(Ipv4Addr::from(bits).into()));
    }

    #[test]
    fn a_checked_url_is_checked_again_alike(text in "https?://[a-z.@:\\[\\]0-9%/?#]{0,40}") {
        if let Ok(url) = check_url(&text, &strict()) {
            prop_assert_eq!(check_url(url.as_str(), &strict()), Ok(url.clone()));
            let _ = redact(url.as_str());
        }
    }

    #[test]
    fn no_password_survives(password in "[a-zA-Z0-9]{12}") {
        let url = format!("https://u:{password}@example.com/?k={password}&{password}#{password}");
        prop_assert!(!redact(&url).contains(&password));
    }
}
