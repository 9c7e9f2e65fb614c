//! Fuzz target: the filters of letters, in a query.

use chrono::Datelike as _;
use relay_fuzz::{fuzz, text};
use relay_runtime::extract::QueryParams;

use crate::filter;

#[test]
fn filters() {
    let seeds = [
        "endpoint_id=0190a5b2-7c00-7000-8000-000000000001&event_type=order.created&reason=exhausted&state=open",
        "after=2026-01-31T12:00:00Z&before=2026-02-01T00:00:00%2B01:00",
        "after=-262143-01-01T00:00:00Z&state=replayed",
        "event_type=%00&reason=",
    ];
    let words: &[&[u8]] =
        &[b"after=", b"before=", b"state=", b"reason=", b"&", b"%00", b"+262142-12-31T23:59:60Z", b"%2B"];
    fuzz("filters of letters", &seeds, words, |input| {
        let query = QueryParams::parse(text(input)?);
        Some(match filter::from_query(&query) {
            Ok(filter) => {
                for time in [filter.after, filter.before].into_iter().flatten() {
                    assert!((1..=9999).contains(&time.year()), "{time} is none of Postgres's");
                }
                assert!(filter.event_type.as_ref().is_none_or(|text| !text.contains('\0')));
                let given = |name: &str| query.text(name).is_some();
                assert_eq!(filter.endpoint.is_some(), given("endpoint_id"), "no filter is left out");
                assert_eq!((filter.reason.is_some(), filter.state.is_some()), (given("reason"), given("state")));
                "ok".to_owned()
            }
            Err(problem) => format!("{:?}", problem.0.kind),
        })
    });
}
