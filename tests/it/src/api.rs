//! A client of the REST interface that keeps status, headers and JSON of each answer.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, names in lower case.
    pub headers: reqwest::header::HeaderMap,
    /// Its body, `Null` where it has none.
    pub body: Value,
}

impl Answer {
    /// A text field of the body.
    pub fn text(&self, field: &str) -> String {
        self.body[field].as_str().unwrap_or_else(|| panic!("no text {field} in {}", self.body)).to_owned()
    }

    /// Asserts the status; the body is shown where it differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    /// Asserts that it is a problem of this type.
    #[track_caller]
    pub fn expect_problem(self, status: u16, slug: &str) -> Self {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.body);
        assert_eq!(self.body["type"], format!("urn:webhook-relay:problem:{slug}"), "{}", self.body);
        self.expect(status)
    }
}

/// A client of one listener.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Api {
    /// Of the interface at `base`, `http://host:port`.
    pub fn new(base: &str) -> Self {
        Self::built(base, |client| client)
    }

    /// The same from an address of this machine.
    pub fn calling_from(base: &str, address: std::net::IpAddr) -> Self {
        Self::built(base, |client| client.local_address(address))
    }

    fn built(base: &str, more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30));
        let client = more(client).build().expect("a client can be built");
        Self { client, base: base.to_owned(), key: None }
    }

    /// The same listener, with an API key in every request.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The address of a path of it.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Any request; `path` from the root.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> anyhow::Result<Answer> {
        let method = reqwest::Method::from_bytes(method.as_bytes())?;
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.bytes().await?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&bytes)))?
        };
        Ok(Answer { status, headers, body })
    }

    /// GET below /api/v1.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.request("GET", &format!("/api/v1{path}"), &[], None).await
    }

    /// POST of JSON below /api/v1.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.post_raw(path, body.to_string()).await
    }

    /// POST of bytes that claim to be JSON.
    pub async fn post_raw(&self, path: &str, body: String) -> anyhow::Result<Answer> {
        self.request("POST", &format!("/api/v1{path}"), &[("content-type", "application/json")], Some(body)).await
    }

    /// PATCH of JSON below /api/v1.
    pub async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.request(
            "PATCH",
            &format!("/api/v1{path}"),
            &[("content-type", "application/json")],
            Some(body.to_string()),
        )
        .await
    }

    /// DELETE below /api/v1.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        self.request("DELETE", &format!("/api/v1{path}"), &[], None).await
    }

    /// Registers an endpoint; `more` is merged into the request.
    pub async fn endpoint(&self, url: &str, more: Value) -> anyhow::Result<Answer> {
        let mut body = serde_json::json!({"name": "test", "url": url});
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        Ok(self.post("/endpoints", &body).await?.expect(201))
    }

    /// Sends an event to an endpoint; returns its id.
    pub async fn event(&self, endpoint: &str, event_type: &str, payload: Value) -> anyhow::Result<String> {
        let body = serde_json::json!({"endpoint_id": endpoint, "event_type": event_type, "payload": payload});
        Ok(self.post("/events", &body).await?.expect(202).text("id"))
    }

    /// Asks again until `done` says so; the last answer is shown when it never does.
    pub async fn wait_for(&self, path: &str, done: impl Fn(&Answer) -> bool) -> anyhow::Result<Answer> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await?;
            if done(&answer) {
                return Ok(answer);
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "{path} never came to it: {} {}",
                answer.status,
                answer.body
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until an event has this status.
    pub async fn wait_status(&self, event: &str, status: &str) -> anyhow::Result<Answer> {
        self.wait_for(&format!("/events/{event}"), |a| a.status == 200 && a.body["status"] == status).await
    }
}
