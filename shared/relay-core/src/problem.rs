//! Every error of the REST interface: RFC 9457 problem details with a type from a closed list, so that clients can
//! tell them apart.

use std::time::Duration;

use serde::Serialize;
use serde::ser::SerializeMap;

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident => $slug:literal, $status:literal, $title:literal;)*) => {
        /// What went wrong. The names are part of the interface.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ProblemType { $($(#[$doc])* $name,)* }

        impl ProblemType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable `type`, a URN.
            pub fn uri(self) -> &'static str {
                match self { $(Self::$name => concat!("urn:webhook-relay:problem:", $slug),)* }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The short title.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

problems! {
    /// The body is not JSON.
    BadJson => "bad-json", 400, "Malformed JSON";
    /// Something about the request can't be read at all.
    BadRequest => "bad-request", 400, "Bad request";
    /// No key, or a wrong one.
    Unauthorized => "unauthorized", 401, "Unauthorized";
    /// A key that may not do this.
    Forbidden => "forbidden", 403, "Forbidden";
    /// No such route.
    NotFound => "not-found", 404, "Not found";
    /// No such endpoint.
    EndpointNotFound => "endpoint-not-found", 404, "Endpoint not found";
    /// No such event.
    EventNotFound => "event-not-found", 404, "Event not found";
    /// No such API key.
    KeyNotFound => "key-not-found", 404, "API key not found";
    /// No such tenant.
    TenantNotFound => "tenant-not-found", 404, "Tenant not found";
    /// The event has no delivery to this endpoint.
    DeliveryNotFound => "delivery-not-found", 404, "Delivery not found";
    /// No such dead letter.
    DeadLetterNotFound => "dead-letter-not-found", 404, "Dead letter not found";
    /// No such job.
    JobNotFound => "job-not-found", 404, "Job not found";
    /// The route has other methods.
    MethodNotAllowed => "method-not-allowed", 405, "Method not allowed";
    /// The same key was used with another body.
    IdempotencyConflict => "idempotency-conflict", 409, "Idempotency key used with another body";
    /// Replayed less than an hour ago.
    ReplayedRecently => "replayed-recently", 409, "Replayed recently";
    /// A job for the delivery is out.
    DeliveryInProgress => "delivery-in-progress", 409, "Delivery in progress";
    /// The letter can't be replayed.
    NotReplayable => "not-replayable", 409, "Not replayable";
    /// Over a size limit.
    PayloadTooLarge => "payload-too-large", 413, "Payload too large";
    /// Not application/json.
    UnsupportedMediaType => "unsupported-media-type", 415, "Unsupported media type";
    /// A field is missing, of the wrong type, or out of its limits.
    ValidationFailed => "validation-failed", 422, "Validation failed";
    /// Of many events none was accepted.
    NothingAccepted => "nothing-accepted", 422, "No event was accepted";
    /// The endpoint is inactive.
    EndpointInactive => "endpoint-inactive", 422, "Endpoint is inactive";
    /// The endpoint's filter refuses the type.
    EventTypeNotAccepted => "event-type-not-accepted", 422, "Event type not accepted";
    /// Too many endpoints.
    TooManyEndpoints => "too-many-endpoints", 422, "Too many endpoints";
    /// Too many API keys.
    TooManyKeys => "too-many-keys", 422, "Too many API keys";
    /// Over a quota.
    TooManyRequests => "too-many-requests", 429, "Too many requests";
    /// Ours.
    Internal => "internal", 500, "Internal error";
    /// More work than fits.
    Overloaded => "overloaded", 503, "Overloaded";
    /// A server that this needs is away.
    ServiceUnavailable => "service-unavailable", 503, "Service unavailable";
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Where: `body.max_retries`, `query.page`, `path.id`, `header.Idempotency-Key`.
    pub field: String,
    /// What.
    pub message: String,
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub kind: ProblemType,
    /// In words, for people.
    pub detail: String,
    /// Per field, where fields are at fault.
    pub errors: Vec<FieldError>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// A problem of this type.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), retry_after: None }
    }

    /// One field is wrong.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// Several fields are wrong.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>().join("; ");
        Self { errors, ..Self::new(ProblemType::ValidationFailed, detail) }
    }

    /// With the time after which to try again.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.status()
    }
}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", self.kind.uri())?;
        map.serialize_entry("title", self.kind.title())?;
        map.serialize_entry("status", &self.kind.status())?;
        map.serialize_entry("detail", &self.detail)?;
        if !self.errors.is_empty() {
            map.serialize_entry("errors", &self.errors)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn types_are_distinct_and_have_error_statuses() {
        let uris: BTreeSet<_> = ProblemType::ALL.iter().map(|p| p.uri()).collect();
        assert_eq!(uris.len(), ProblemType::ALL.len());
        assert!(ProblemType::ALL.iter().all(|p| (400..=599).contains(&p.status())));
    }

    #[test]
    fn a_problem_is_written_as_rfc_9457_wants_it() {
        let json = serde_json::to_value(Problem::field("body.max_retries", "must be between 1 and 20")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "urn:webhook-relay:problem:validation-failed",
                "title": "Validation failed",
                "status": 422,
                "detail": "body.max_retries: must be between 1 and 20",
                "errors": [{"field": "body.max_retries", "message": "must be between 1 and 20"}],
            })
        );
    }

    #[test]
    fn several_faults_are_all_named() {
        let error = |field: &str| FieldError { field: field.to_owned(), message: "is required".to_owned() };
        let problem = Problem::fields(vec![error("body.name"), error("body.url")]);
        assert_eq!(problem.detail, "body.name: is required; body.url: is required");
        assert_eq!(problem.errors.len(), 2);
    }

    #[test]
    fn types_are_lower_case_urns() {
        for kind in ProblemType::ALL {
            let name = kind.uri().strip_prefix("urn:webhook-relay:problem:").unwrap();
            assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
            assert!(!kind.title().is_empty());
        }
    }

    proptest! {
        #[test]
        fn any_text_makes_valid_json(detail: String, field: String, message: String, index in 0..ProblemType::ALL.len()) {
            let kind = ProblemType::ALL[index];
            let problem = Problem { errors: vec![FieldError { field, message }], ..Problem::new(kind, detail) };
            let json: serde_json::Value = serde_json::from_slice(&serde_json::to_vec(&problem).unwrap()).unwrap();
            prop_assert_eq!(json["detail"].as_str(), Some(problem.detail.as_str()));
            prop_assert_eq!(json["errors"][0]["field"].as_str(), Some(problem.errors[0].field.as_str()));
            prop_assert_eq!(json["type"].as_str(), Some(kind.uri()));
        }
    }
}
