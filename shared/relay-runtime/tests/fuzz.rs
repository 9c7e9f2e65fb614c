//! Fuzz targets of the runtime: queries, and addresses that are shown in logs.

use relay_core::ids::EndpointId;
use relay_core::page::{Listing, SIZE_MAX, TOTAL_MAX};
use relay_fuzz::{fuzz, text};
use relay_runtime::extract::QueryParams;
use relay_runtime::reconnect::address;

#[test]
fn queries() {
    let seeds = [
        "page=2&size=50",
        "cursor=&limit=7",
        "cursor=AAZHTBJMAAAAAAAAAAAAAAAAAAAAAAAH",
        "after=2026-01-31T12:00:00Z&force=true&endpoint_id=0190a5b2-7c00-7000-8000-000000000001",
        "a=x%20y&a=+&&=&%zz",
    ];
    let words: &[&[u8]] =
        &[b"page=", b"size=", b"cursor=", b"limit=", b"&", b"=", b"%00", b"%f0%9f", b"after=", b"force="];
    fuzz("queries", &seeds, words, |input| {
        let query = QueryParams::parse(text(input)?);
        let listing = query.listing();
        match &listing {
            Ok(Listing::Page(page)) => {
                assert!((1..=SIZE_MAX).contains(&page.size) && page.page >= 1 && page.offset() < TOTAL_MAX);
            }
            Ok(Listing::Walk { limit, .. }) => assert!((1..=SIZE_MAX).contains(limit)),
            Err(error) => assert!(error.field.starts_with("query.")),
        }
        let id = query.id::<EndpointId>("endpoint_id");
        assert!(id.is_err() || id.is_ok_and(|id| id.is_some() == query.text("endpoint_id").is_some()));
        let (time, flag) = (query.time("after"), query.boolean("force"));
        Some((listing.is_ok(), time.is_ok_and(|time| time.is_some()), flag.is_ok()))
    });
}

#[test]
fn addresses_in_logs() {
    let seeds = [
        "postgres://me:sesame@db:5432/relay?password=sesame",
        "nats://sesame@127.0.0.1:4222",
        "redis://:sesame@[::1]/0#sesame",
    ];
    let words: &[&[u8]] = &[b"sesame", b"@", b":", b"//", b"?password=sesame", b"/", b"%40", b"#sesame"];
    fuzz("addresses in logs", &seeds, words, |input| {
        let given = text(input)?;
        let shown = address(given);
        // What stands before the host or behind the path is not shown.
        let public = url::Url::parse(given)
            .is_ok_and(|url| format!("{}{}", url.host_str().unwrap_or_default(), url.path()).contains("sesame"));
        assert!(public || !shown.contains("sesame"), "{given} is shown as {shown}");
        Some(shown.len().min(40))
    });
}
