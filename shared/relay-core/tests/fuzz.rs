//! Fuzz targets of the core: everything that reads bytes from outside or from a stream. `make fuzz` runs them for long,
//! `cargo test` for a moment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use bytes::Bytes;
use chrono::{DateTime, TimeZone as _, Utc};
use relay_core::address::{self, AddressPolicy, UrlProblem};
use relay_core::answer::{RETRY_AFTER_MAX, parse_retry_after};
use relay_core::bundle::{self, BundleWriter};
use relay_core::event::{Event, EventType, check_payload};
use relay_core::forwarded::{ProxyHeader, TrustedProxies};
use relay_core::ids::{EndpointId, EventId, IdempotencyKey, TenantId};
use relay_core::job::{self, Job};
use relay_core::keys::{KeyHash, Scope, key_text};
use relay_core::matching::{TypeFilter, is_exact};
use relay_core::page::{Cursor, Listing, ListingParams};
use relay_core::sealing::{Field, Place, SealingKeys, is_sealed};
use relay_core::signature::{Inbound, PublicKey, Schemes, SigningKey, SigningSecret, verify};
use relay_core::subject::{self, EventsSubject};
use relay_core::{WireError, headers};
use relay_fuzz::{fuzz, parts, text};
use secrecy::ExposeSecret as _;
use uuid::Uuid;

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 1, 2, 12, 0, 0).unwrap()
}

fn event(key: Option<&str>, endpoint: Option<u128>, trace: Option<&str>, payload: &'static str) -> Event {
    Event {
        id: EventId::fresh(noon(), [7; 10]),
        tenant: TenantId::default_tenant(),
        event_type: EventType::trusted("order.created"),
        endpoint: endpoint.map(|n| EndpointId(Uuid::from_u128(n))),
        key: key.map(|k| IdempotencyKey::parse(k).expect("a key of letters")),
        accepted_at: noon(),
        trace: trace.map(Into::into),
        payload: Bytes::from_static(payload.as_bytes()),
    }
}

/// What a reader of frames answers, coarsely.
fn coarse<T>(read: &Result<Vec<T>, WireError>) -> String {
    match read {
        Ok(all) => format!("{} items", all.len()),
        Err(why) => why.to_string(),
    }
}

#[test]
fn bundles() {
    let bundle = |events: &[Event]| {
        let mut writer = BundleWriter::default();
        events.iter().for_each(|event| writer.push(event));
        writer.finish()
    };
    let plain = event(None, None, None, "{}");
    let full = event(Some("key-é"), Some(9), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), "[1,2]");
    let seeds = [bundle(&[]), bundle(std::slice::from_ref(&plain)), bundle(&[full, plain])];
    fuzz("bundles", &seeds, &[&[0, 0, 0, 1], &[7], b"default"], |input| {
        let read = bundle::decode(Bytes::copy_from_slice(input));
        if let Ok(events) = &read {
            assert_eq!(
                bundle::decode(bundle(events)).as_ref(),
                Ok(events),
                "what is read is written and read the same"
            );
        }
        coarse(&read)
    });
}

#[test]
fn jobs() {
    let job = |payload: Option<&'static str>, trace: Option<&str>, probe| Job {
        event: EventId::fresh(noon(), [7; 10]),
        endpoint: EndpointId(Uuid::from_u128(9)),
        tenant: TenantId::default_tenant(),
        event_type: EventType::trusted("order.created"),
        claim: 3,
        attempts: 2,
        base: 1,
        claimed_at: noon(),
        accepted_at: noon(),
        directory_version: 12,
        probe,
        trace: trace.map(Into::into),
        payload: payload.map(|text| Bytes::from_static(text.as_bytes())),
    };
    let seeds = [
        job::encode(&[]),
        job::encode(&[job(None, None, false)]),
        job::encode(&[job(Some("{}"), Some("00-1-2-3"), true), job(None, None, false)]),
    ];
    fuzz("jobs", &seeds, &[&[0, 0, 0, 1], &[7], b"default"], |input| {
        let read = job::decode(Bytes::copy_from_slice(input));
        if let Ok(jobs) = &read {
            assert_eq!(job::decode(job::encode(jobs)).as_ref(), Ok(jobs), "what is read is written and read the same");
            let split = job::bundles(jobs.clone());
            assert_eq!(&split.concat(), jobs, "grouping loses and reorders nothing");
            assert!(split.iter().all(|group| !group.is_empty() && group.len() <= job::JOBS_MAX));
        }
        coarse(&read)
    });
}

#[test]
fn subjects() {
    let seeds =
        ["relay.bundles.0", "relay.events.default.order.created", "relay.events.acme-1.a", "relay.jobs.fresh.0"];
    fuzz("subjects", &seeds, &[b"relay.events.", b"relay.bundles.", b".", b"_relay"], |input| {
        let subject = text(input)?;
        Some(match subject::parse_events(subject) {
            EventsSubject::Bundle => "bundle".to_owned(),
            EventsSubject::Direct { tenant, event_type } => {
                assert_eq!(subject::event(&tenant, &event_type), subject, "what is parsed is built the same");
                assert_ne!(tenant, TenantId::system(), "nobody publishes for the system");
                "direct".to_owned()
            }
            EventsSubject::Bad(why) => why,
        })
    });
}

#[test]
fn names_and_ids() {
    let seeds = [
        "default",
        "_relay",
        "order.created",
        "0190a5b2-7c00-7000-8000-000000000001",
        "urn:uuid:0190a5b2-7c00-7000-8000-000000000001",
        "{0190a5b27c0070008000000000000001}",
        "events:write",
        "key-é",
    ];
    fuzz("names and ids", &seeds, &[b"urn:uuid:", b"-", b"."], |input| {
        let given = text(input)?;
        let tenant = TenantId::parse(given);
        if let Ok(tenant) = &tenant {
            assert_eq!(tenant.as_str(), given);
            assert!(EventType::parse(given).is_ok(), "a tenant is one token of a subject");
        }
        let kind = EventType::parse(given);
        if let Ok(kind) = &kind {
            assert_eq!(kind.as_str(), given);
        }
        let key = IdempotencyKey::parse(given);
        assert!(key.as_ref().map_or(true, |key| key.as_str() == given));
        let id = given.parse::<EventId>();
        if let Ok(id) = &id {
            assert_eq!(id.to_string().parse::<EventId>().as_ref(), Ok(id));
        }
        let scope = Scope::parse(given);
        assert!(scope.map_or(true, |scope| scope.as_str() == given));
        Some((tenant.is_ok(), kind.err().map(|e| e.to_string()), key.is_ok(), id.is_ok(), scope.is_ok()))
    });
}

#[test]
fn api_keys() {
    let good = key_text([5; 32]);
    fuzz("api keys", &[good.as_str(), "rk_", ""], &[good.as_bytes()], |input| {
        let hash = KeyHash::of(input);
        if let Some(hash) = &hash {
            assert_eq!(*hash, KeyHash::digest(text(input).unwrap()));
        }
        hash.is_some()
    });
}

#[test]
fn patterns() {
    let seeds = ["order.*\nuser.>\nexact.type\norder.created", ">\na.b", "*.b\na.b", "a.>\na", "\na"];
    fuzz("patterns", &seeds, &[b"*", b">", b".", b"\n"], |input| {
        let mut lines: Vec<String> = text(input)?.lines().map(str::to_owned).collect();
        let event_type = lines.pop().unwrap_or_default();
        let filter = TypeFilter::parse(&lines);
        let outcome = match &filter {
            Ok(filter) => {
                assert_eq!(TypeFilter::parse(filter.patterns()).as_ref(), Ok(filter));
                let any =
                    lines.iter().any(|p| TypeFilter::parse(std::slice::from_ref(p)).unwrap().matches(&event_type));
                assert_eq!(filter.matches(&event_type), any || lines.is_empty(), "a filter is the sum of its patterns");
                let exact = lines.iter().any(|p| is_exact(p) && *p == event_type);
                assert!(!exact || filter.matches(&event_type));
                format!("{any}")
            }
            Err(why) => why.why.to_owned(),
        };
        Some(outcome)
    });
}

#[test]
fn urls() {
    let seeds = [
        "https://hooks.example.com/a?b=c#d",
        "http://user:pass@hooks.example.com:8080/",
        "http://127.0.0.1/",
        "http://0x7f.1/",
        "http://[::ffff:10.0.0.1]:80/",
        "http://[64:ff9b::a00:1]/",
        "http://localhost./",
        "https://bücher.example/",
        "http://example.com:0/",
    ];
    let words: [&[u8]; 9] = [b"http://", b"//", b"@", b":", b"[::1]", b"127.0.0.1", b"localhost", b"%2e", b"\\"];
    let policy = AddressPolicy::default();
    fuzz("urls", &seeds, &words, |input| {
        let given = text(input)?;
        let hidden = address::redact(given);
        let checked = address::check_url(given, &policy);
        if let Ok(url) = &checked {
            assert_eq!(
                address::check_url(url.as_str(), &policy).as_ref(),
                Ok(url),
                "what is stored is taken again, as it is"
            );
            assert!(matches!(url.scheme(), "http" | "https") && url.port() != Some(0));
            match url.host() {
                Some(url::Host::Ipv4(ip)) => assert!(policy.permits(ip.into()), "{url}"),
                Some(url::Host::Ipv6(ip)) => assert!(policy.permits(ip.into()), "{url}"),
                Some(url::Host::Domain(name)) => assert!(!name.ends_with('.') && !address::is_localhost(name), "{url}"),
                None => panic!("{url} has no host"),
            }
            if let Some(password) = url.password() {
                let shown = url::Url::parse(&hidden).unwrap();
                assert!(shown.password().is_none() && shown.username() == "***", "{hidden} shows {password}");
            }
        }
        Some(match checked {
            Ok(url) => format!("{:?}", url.host().map(|host| std::mem::discriminant(&host))),
            Err(UrlProblem::Refused(refused)) => refused.why.to_owned(),
            Err(why) => why.to_string(),
        })
    });
}

#[test]
fn addresses() {
    let seeds = [
        Ipv6Addr::LOCALHOST,
        "::ffff:10.0.0.1".parse().unwrap(),
        "64:ff9b::7f00:1".parse().unwrap(),
        "2002:7f00:1::".parse().unwrap(),
        "2001:0:1::".parse().unwrap(),
        "2606:4700::1".parse().unwrap(),
    ];
    let seeds = seeds.map(|ip: Ipv6Addr| ip.octets());
    fuzz("addresses", &seeds, &[&[127, 0, 0, 1], &[0; 10], &[0xff, 0xff], &[0x20, 0x02]], |input| {
        let policy = AddressPolicy::default();
        let ip = IpAddr::from(*input.first_chunk::<16>()?);
        if let Some(v4) = input.first_chunk::<4>().map(|octets| std::net::Ipv4Addr::from(*octets)) {
            let reason = |ip: IpAddr| policy.check(ip).err().map(|refused| refused.why);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            assert_eq!(reason(v4.into()), reason(v4.to_ipv6_mapped().into()), "{v4} in other clothes");
            assert_eq!(reason(v4.into()), reason(nat64.into()), "{v4} in other clothes");
        }
        let judged = policy.check(ip).err().map_or(ip.to_canonical(), |refused| refused.ip);
        let only = AddressPolicy::new(vec![judged.into()]);
        assert!(only.permits(ip), "{ip} is judged as {judged}, and allowed by that name");
        Some(policy.check(ip).err().map(|refused| refused.why))
    });
}

#[test]
fn payloads() {
    let seeds = [r#"{"a":[1,2.5e3,"é\u00e9",null,true]}"#, "1", r#""text""#, "[[[[]]]]", " {} "];
    let words: [&[u8]; 6] = [b"[", b"{\"a\":", b"\\u", b"\"", b"}", b","];
    fuzz("payloads", &seeds, &words, |input| {
        let checked = check_payload(input, 4096);
        // The reference reads no deeper than 128, and has its own opinion on numbers beyond f64.
        let other = serde_json::from_slice::<serde_json::Value>(input);
        assert!(!(checked.is_err() && input.len() <= 4096 && other.is_ok()), "{checked:?}");
        if checked.is_ok() {
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(input).is_ok() || other.is_err());
        }
        checked.map_err(|why| why.to_string())
    });
}

#[test]
fn retry_after() {
    let date = "Wed, 25 Nov 2026 12:00:00 GMT";
    let seeds = [
        b"120".to_vec(),
        b"1.5".to_vec(),
        date.as_bytes().to_vec(),
        [date.as_bytes(), b"\xff", date.as_bytes()].concat(),
        b"Wednesday, 25-Nov-26 12:00:00 GMT".to_vec(),
        b"Wed Nov 25 12:00:00 2026".to_vec(),
    ];
    fuzz("Retry-After", &seeds, &[date.as_bytes(), b"GMT", b" ", b"."], |input| {
        let [value, response_date] = parts(input);
        let wait = parse_retry_after(value, Some(response_date).filter(|d| !d.is_empty()), noon());
        assert!(wait.is_none_or(|wait| wait <= RETRY_AFTER_MAX));
        wait.map(|wait| wait.as_secs().ilog2_or_zero())
    });
}

/// The size of a number, so that outcomes are few.
trait Size {
    fn ilog2_or_zero(self) -> u32;
}

impl Size for u64 {
    fn ilog2_or_zero(self) -> u32 {
        self.checked_ilog2().unwrap_or_default()
    }
}

#[test]
fn cursors() {
    let cursor = |at| Cursor { at, id: Uuid::from_u128(7) }.encode();
    let seeds = [cursor(noon()), cursor(Utc.timestamp_micros(0).unwrap()), String::new(), "abc".to_owned()];
    fuzz("cursors", &seeds, &[b"AAAA", b"____", b"="], |input| {
        let given = text(input)?;
        let read = Cursor::decode(given);
        if let Ok(cursor) = &read {
            assert_eq!(cursor.encode(), given, "a place has one text");
        }
        let number = i64::try_from(input.len()).ok().filter(|n| n % 2 == 0);
        let listing = Listing::parse(ListingParams { cursor: Some(given), limit: number, ..ListingParams::default() });
        if let Ok(Listing::Walk { limit, .. }) = listing {
            assert!((1..=relay_core::page::SIZE_MAX).contains(&limit));
        }
        Some((read.is_ok(), listing.map_err(|why| why.to_string()).is_ok()))
    });
}

#[test]
fn inbound_signatures() {
    let secret = SigningSecret::generate([3; 32]);
    let key = SigningKey::generate([4; 32]);
    let public = key.public().to_string();
    let now = noon().timestamp();
    let join = |parts: [&str; 6]| parts.map(str::as_bytes).join(&0xff);
    let time = now.to_string();
    let digest = "a".repeat(64);
    let seeds = [
        join([&format!("t={now},v1={digest}"), "", "", "", secret.expose(), ""]),
        join(["", "id", &time, "v1,qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo= v1a,AAAA", secret.expose(), &public]),
        join(["v1=,t=-1", "id", "99999999999999999999", "v2,x", "a plain secret text", "whpk_"]),
    ];
    let words: [&[u8]; 9] = [b"t=", b"v1=", b"v1,", b"v1a,", b",", b" ", b"\xff", b"whsec_", b"whpk_"];
    fuzz("inbound signatures", &seeds, &words, |input| {
        let [x_webhook_signature, webhook_id, webhook_timestamp, webhook_signature, secret, public_key] =
            parts::<6>(input).map(Some);
        let inbound =
            Inbound { x_webhook_signature, webhook_id, webhook_timestamp, webhook_signature, secret, public_key };
        let verdict = verify(&inbound, b"{}", now);
        assert!(!verdict.valid(), "nobody forges a signature");
        assert!(verdict.failure().is_some(), "what is not valid has a reason");
        let shown = format!("{verdict:?}");
        let secret =
            secret.and_then(text).filter(|text| text.len() >= 16 && text.bytes().all(|b| b.is_ascii_graphic()));
        // Details quote no more of a request than its numbers.
        assert!(secret.is_none_or(|secret| !shown.contains(secret)), "{shown}");
        verdict.failure().map(|failure| failure.reason.as_str())
    });
}

#[test]
fn signing_keys() {
    let (secret, key) = (SigningSecret::generate([3; 32]), SigningKey::generate([4; 32]));
    let public = key.public().to_string();
    let seeds = [secret.expose(), key.expose(), &public, "correct-horse-battery", "relay,standard-v1", "standard-v1a"];
    fuzz("signing keys", &seeds, &[b"whsec_", b"whsk_", b"whpk_", b"=", b","], |input| {
        let given = text(input)?;
        let secret = SigningSecret::parse(given.to_owned());
        if let Ok(secret) = &secret {
            assert_eq!(secret.expose(), given);
            let form = secret.standard_webhooks_form();
            assert!(
                form.starts_with("whsec_") && SigningSecret::parse(form.clone()).is_ok() || form.len() > 256,
                "{form}"
            );
        }
        let pair = SigningKey::parse(given.to_owned());
        if let Ok(pair) = &pair {
            assert!(PublicKey::parse(&pair.public().to_string()).is_ok());
        }
        let public = PublicKey::parse(given);
        if let Ok(public) = &public {
            assert_eq!(public.to_string(), given, "a key has one text");
        }
        let names: Vec<&str> = given.split(',').collect();
        let schemes = Schemes::parse(&names);
        if let Ok(schemes) = schemes {
            assert_eq!(Schemes::parse(&schemes.names()), Ok(schemes));
        }
        Some((secret.err(), pair.is_ok(), public.is_ok(), schemes.is_ok())).map(|outcome| format!("{outcome:?}"))
    });
}

#[test]
fn forwarded() {
    let seeds = [
        &b"192.0.2.7, 10.1.1.1"[..],
        b"for=192.0.2.7;proto=https, for=\"[2001:db8::1]:4711\"",
        b"for=\"_hidden\", for=unknown\xfffor=10.0.0.2;host=\"a, b\\\"\"",
        b"[2001:db8::1]:80\xff10.0.0.3:99",
    ];
    let words: [&[u8]; 8] = [b"for=", b"\"", b",", b";", b"\\\"", b"10.0.0.9", b"[::1]", b"\xff"];
    fuzz("forwarded", &seeds, &words, |input| {
        let values = || parts::<3>(input).into_iter();
        let peer = IpAddr::from([10, 0, 0, 1]);

        [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded].map(|header| {
            assert_eq!(TrustedProxies::default().client(peer, values()), peer, "nobody is trusted");
            let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap()], header);
            let client = proxies.client(peer, values());
            assert_eq!(client, client.to_canonical());
            // What a trusted proxy appends counts, whatever stands before it.
            let behind = match header {
                ProxyHeader::XForwardedFor => &b"198.51.100.1"[..],
                ProxyHeader::Forwarded => b"for=198.51.100.1",
            };
            let appended = [input, b", ", behind].concat();
            assert_eq!(proxies.client(peer, [&appended[..]]), IpAddr::from([198, 51, 100, 1]));
            assert_eq!(proxies.client(peer, values().chain([behind])), IpAddr::from([198, 51, 100, 1]));
            (client == peer, client.is_ipv4())
        })
    });
}

#[test]
fn custom_headers() {
    let seeds =
        ["X-A: b\nAuthorization: Bearer x", "Host: x", "webhook-id: 1", "Proxy-Authorization: x", ": ", "X-É: é"];
    let words: [&[u8]; 6] = [b"X-Webhook-", b": ", b"\n", b"\r", b"Transfer-Encoding", b"\x7f"];
    fuzz("custom headers", &seeds, &words, |input| {
        let lines: BTreeMap<&str, &str> =
            text(input)?.split('\n').map(|line| line.split_once(": ").unwrap_or((line, ""))).collect();
        let given =
            lines.iter().map(|(name, value)| ((*name).to_owned(), headers::GivenHeader::Plain((*value).to_owned())));
        let checked = headers::check(&given.collect());
        if checked.is_ok() {
            for (name, value) in &lines {
                assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'), "{name:?}");
                assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
                assert!(!name.to_ascii_lowercase().starts_with("x-webhook-"));
            }
        }
        Some(checked.err().map(|e| e.why))
    });
}

/// The text of the key of these bytes.
fn sealing_key(byte: u8) -> String {
    SealingKeys::generate([byte; 32]).expose_secret().to_owned()
}

#[test]
fn sealed_texts() {
    let keys = SealingKeys::parse(&sealing_key(1)).unwrap();
    let tenant = TenantId::default_tenant();
    let place = Place { tenant: &tenant, endpoint: EndpointId(Uuid::from_u128(1)), field: Field::SigningSecret };
    let good = keys.seal(&place, "whsec_c2VjcmV0", [7; 12]);
    let seeds = [good.as_str(), "whsec_c2VjcmV0", "sealed:v2:00000000:", "sealed:v1:e4fd7442:AAAA"];
    let words: [&[u8]; 4] = [b"sealed:", b"v1:", b":", b"="];
    fuzz("sealed texts", &seeds, &words, |input| {
        let stored = text(input)?;
        let opened = keys.open(&place, stored);
        match &opened {
            Ok(secret) if is_sealed(stored) => assert_eq!(keys.seal(&place, secret.expose_secret(), [7; 12]), good),
            Ok(secret) => assert_eq!(secret.expose_secret(), stored),
            Err(_) => assert!(is_sealed(stored)),
        }
        Some(opened.err().map(|why| std::mem::discriminant(&why)))
    });
}

#[test]
fn key_files() {
    let seeds =
        [format!("# a comment\n{}\n{}", sealing_key(1), sealing_key(2)), "whek_AAAA,,#".to_owned(), String::new()];
    let words: [&[u8]; 5] = [b"whek_", b"\n", b",", b"#", b"="];
    fuzz("key files", &seeds, &words, |input| {
        let read = SealingKeys::parse(text(input)?);
        if let Ok(keys) = &read {
            assert!(!keys.is_empty() && keys.ids().count() <= 16);
        }
        Some(read.map(|keys| keys.ids().count()).map_err(|why| why.to_string()))
    });
}
