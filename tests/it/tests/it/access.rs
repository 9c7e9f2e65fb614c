//! Tenants and keys: who gets in, and that nothing of one tenant is seen or changed by another, on every route of the
//! OpenAPI document. A route that this test can't call as an outsider would fails it: teach it here.

use std::collections::HashMap;

use it::{Answer, Api, Reply, World};
use serde_json::{Value, json};

/// Routes that change nothing of a tenant although they are no GET, so that `read` is enough.
const READING_POSTS: [&str; 1] = ["/api/v1/inbound/verify"];

/// An operation of the document.
struct Operation {
    method: String,
    path: String,
    scope: String,
    query: Vec<String>,
    has_body: bool,
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !["get", "post", "put", "patch", "delete"].contains(&method.as_str()) {
                continue;
            }
            let scope = operation["security"][0]["api_key"][0].as_str();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let query =
                parameters.iter().filter(|p| p["in"] == "query").map(|p| p["name"].as_str().unwrap().to_owned());
            found.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                scope: scope.unwrap_or_else(|| panic!("{method} {path} doesn't say which scope it needs")).to_owned(),
                query: query.collect(),
                has_body: operation["requestBody"].is_object(),
            });
        }
    }
    found
}

/// What a tenant has: an object of each kind that has an id.
struct Belongings {
    endpoint: String,
    event: String,
    letter: String,
    job: String,
    key: String,
}

impl Belongings {
    /// Makes one of each: an endpoint, a delivered event, a dead letter, a job that is over, a key.
    async fn make(api: &Api, w: &World, secret_word: &str) -> anyhow::Result<Self> {
        w.sink.script(&format!("/{secret_word}"), [Reply::status(400)]);
        let settings = json!({"name": secret_word, "custom_headers": {"X-Whose": secret_word}});
        let endpoint = api.endpoint(&w.sink.url(&format!("/{secret_word}")), settings).await?.text("id");
        let event = api.event(&endpoint, &format!("of.{secret_word}"), json!({"whose": secret_word})).await?;
        api.wait_status(&event, "dead_lettered").await?;
        let letters = api.get("/dlq").await?.expect(200);
        let letter = letters.body["items"][0]["id"].as_str().unwrap().to_owned();
        let made = api.post("/dlq/discard/bulk", &json!({"reason": "gone"})).await?.expect(202);
        let job = made.body["job"]["id"].as_str().unwrap().to_owned();
        api.wait_for(&format!("/jobs/{job}"), |a| a.body["state"] == "done").await?;
        let made = api.post("/keys", &json!({"name": secret_word, "scopes": ["read"]})).await?.expect(201);
        Ok(Self { endpoint, event, letter, job, key: made.text("id") })
    }

    /// The id for a parameter of a path or a query.
    fn id(&self, path: &str, parameter: &str) -> Option<&str> {
        match parameter {
            "endpoint_id" => Some(&self.endpoint),
            "event_id" => Some(&self.event),
            "key_id" => Some(&self.key),
            "id" if path.starts_with("/api/v1/dlq/{id}") => Some(&self.letter),
            "id" if path.starts_with("/api/v1/jobs/{id}") => Some(&self.job),
            _ => None,
        }
    }

    /// The path with our ids; whether there are any.
    fn fill(&self, path: &str) -> (String, bool) {
        let mut filled = path.to_owned();
        while let Some((before, rest)) = filled.split_once('{') {
            let (parameter, after) = rest.split_once('}').unwrap();
            let id = self.id(path, parameter);
            let id = id.unwrap_or_else(|| panic!("teach tests/it/access.rs whose {{{parameter}}} of {path} is"));
            filled = format!("{before}{id}{after}");
        }
        let has_ids = filled != path;
        (filled, has_ids)
    }

    /// A body with which an outsider would reach for what is ours, or do what it may do for itself. `None`: not known.
    fn body(&self, operation: &Operation) -> Option<Value> {
        let path = operation.path.strip_prefix("/api/v1").unwrap();
        Some(match (operation.method.as_str(), path) {
            ("POST", "/events") => json!({"endpoint_id": self.endpoint, "event_type": "a", "payload": "reached"}),
            ("POST", "/events/batch") => json!({"events": [
                {"endpoint_id": self.endpoint, "event_type": "a", "payload": "reached"},
                {"event_type": "a", "payload": 1},
            ]}),
            ("POST", "/events/{event_id}/retry") => json!({"endpoint_id": self.endpoint}),
            ("POST", "/endpoints") => json!({"name": "outsider's", "url": "https://example.com/"}),
            ("PATCH", "/endpoints/{endpoint_id}") => json!({"name": "taken over", "is_active": false}),
            ("POST", "/endpoints/{endpoint_id}/rotate-secret") => json!({"overlap_seconds": 0}),
            ("POST", "/endpoints/{endpoint_id}/resume") => json!({"deliver": "none"}),
            ("POST", "/endpoints/{endpoint_id}/test") => json!({"payload": "test"}),
            ("POST", "/dlq/{id}/replay") => json!({"as_new_event": true}),
            ("POST", "/dlq/replay/bulk" | "/dlq/discard/bulk") => json!({"endpoint_id": self.endpoint, "force": true}),
            ("POST", "/keys") => json!({"name": "more", "scopes": ["operator"]}),
            ("POST", "/tenants") => json!({"id": "outsiders"}),
            ("POST", "/inbound/verify") => json!({}),
            _ => return None,
        })
    }

    /// What an outsider must never see.
    fn marks<'a>(&'a self, secret_word: &'a str) -> [&'a str; 6] {
        [&self.endpoint, &self.event, &self.letter, &self.job, &self.key, secret_word]
    }

    /// All of it as its owner sees it.
    async fn seen(&self, api: &Api) -> anyhow::Result<Vec<Value>> {
        let paths = [
            format!("/endpoints/{}", self.endpoint),
            format!("/endpoints/{}/stats", self.endpoint),
            format!("/events/{}", self.event),
            format!("/dlq/{}", self.letter),
            format!("/jobs/{}", self.job),
            "/endpoints".to_owned(),
            "/events".to_owned(),
            "/dlq".to_owned(),
            "/dlq/groups".to_owned(),
            "/jobs".to_owned(),
            "/stats".to_owned(),
        ];
        let mut seen = Vec::new();
        for path in paths {
            seen.push(api.get(&path).await?.expect(200).body);
        }
        let mut keys = api.get("/keys").await?.expect(200).body;
        for key in keys["items"].as_array_mut().unwrap() {
            key["last_used_at"] = Value::Null;
        }
        seen.push(keys);
        Ok(seen)
    }
}

/// Without the filters of jobs: they say what the request named.
fn without_filters(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.remove("filter");
            fields.values_mut().for_each(|field| *field = without_filters(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_filters(item.take())),
        _ => {}
    }
    value
}

async fn call(api: &Api, operation: &Operation, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let headers: &[(&str, &str)] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
    api.request(&operation.method, path, headers, body.map(Value::to_string)).await
}

/// A system with tenants acme and bolt, and keys by name.
async fn two_tenants() -> anyhow::Result<(World, HashMap<&'static str, Api>)> {
    let w = World::start().await?;
    for tenant in ["acme", "bolt"] {
        w.command(&["tenants", "create", tenant])?;
    }
    let mut keys = HashMap::new();
    for (name, tenant, scope) in [
        ("acme", "acme", "admin"),
        ("bolt", "bolt", "admin"),
        ("events:write", "acme", "events:write"),
        ("read", "acme", "read"),
        ("admin", "acme", "admin"),
        ("operator", "default", "operator"),
    ] {
        keys.insert(name, w.api.with_key(&w.key(tenant, scope, &[])?));
    }
    Ok((w, keys))
}

#[tokio::test]
async fn no_route_shows_or_changes_what_is_another_tenants() -> anyhow::Result<()> {
    let (w, keys) = two_tenants().await?;
    let (acme, bolt) = (&keys["acme"], &keys["bolt"]);
    let ours = Belongings::make(acme, &w, "sesame").await?;
    let theirs = Belongings::make(bolt, &w, "poppy").await?;
    let before = ours.seen(acme).await?;
    let received = w.sink.received("/sesame").len();
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200).body;
    let operations = operations(&document);
    assert!(operations.len() >= 20, "{}", operations.len());

    for operation in &operations {
        let name = format!("{} {}", operation.method, operation.path);
        let (path, has_ids) = ours.fill(&operation.path);
        let body = operation.has_body.then(|| {
            let body = ours.body(operation);
            body.unwrap_or_else(|| panic!("teach tests/it/access.rs a body for {name}"))
        });
        let mut answers = vec![call(bolt, operation, &path, body.as_ref()).await?];
        // Filters that name what is ours.
        let filters = operation.query.iter().filter_map(|q| Some(format!("{q}={}", ours.id(&operation.path, q)?)));
        let filters = filters.collect::<Vec<_>>().join("&");
        if !filters.is_empty() {
            answers.push(call(bolt, operation, &format!("{path}?{filters}"), body.as_ref()).await?);
        }
        for answer in answers {
            let of_first = answer.body["results"][0]["status"].as_i64();
            let (status, text) = (answer.status, without_filters(answer.body).to_string());
            if operation.scope == "operator" {
                assert_eq!(status, 403, "{name}: {text}");
            } else if operation.path.ends_with("/batch") {
                assert_eq!((status, of_first), (202, Some(404)), "{name}: {text}");
            } else if has_ids || text.contains("endpoint-not-found") {
                assert_eq!(status, 404, "{name} with another tenant's ids: {text}");
            } else if operation.path == "/api/v1/keys" && operation.method == "POST" {
                assert_eq!(status, 403, "no one hands out more than they have: {text}");
            } else {
                assert!((200..300).contains(&status), "{name}: {status} {text}");
            }
            for mark in ours.marks("sesame") {
                // A problem may repeat what the request named, not what is behind it.
                assert!(!text.contains(mark), "{name} shows {mark} of another tenant: {text}");
            }
        }
    }
    assert_eq!(ours.seen(acme).await?, before, "nothing was changed");
    // What the outsider did for itself reached only its own.
    let event = bolt.post("/events", &json!({"event_type": "for.all", "payload": 1})).await?.expect(202).text("id");
    bolt.wait_status(&event, "dead_lettered").await?;
    assert_eq!(w.sink.received("/sesame").len(), received);

    // The operator sees both, acts in one by the header, and sees there what it sees.
    let operator = &keys["operator"];
    let letters = operator.get("/dlq").await?.expect(200).body.to_string();
    assert!(letters.contains(&ours.letter) && letters.contains(&theirs.letter), "{letters}");
    let in_acme = [("x-relay-tenant", "acme")];
    let seen = operator.request("GET", "/api/v1/endpoints", &in_acme, None).await?.expect(200).body;
    assert_eq!(seen["items"][0]["id"], json!(ours.endpoint));
    let seen = operator.request("GET", "/api/v1/dlq", &in_acme, None).await?.expect(200).body.to_string();
    assert!(seen.contains(&ours.letter) && !seen.contains(&theirs.letter), "{seen}");
    let nobody = [("x-relay-tenant", "nobody")];
    operator.request("GET", "/api/v1/dlq", &nobody, None).await?.expect_problem(404, "tenant-not-found");
    acme.request("GET", "/api/v1/dlq", &[("x-relay-tenant", "bolt")], None).await?.expect_problem(403, "forbidden");
    Ok(())
}

#[tokio::test]
async fn every_route_asks_for_a_good_key_with_the_scope_that_it_says() -> anyhow::Result<()> {
    let (w, keys) = two_tenants().await?;
    let ours = Belongings::make(&keys["acme"], &w, "sesame").await?;
    let expired = w.api.with_key(&w.key("acme", "admin", &["--expires", "1s"])?);
    let revoked_key = w.key("acme", "admin", &[])?;
    let revoked = w.api.with_key(&revoked_key);
    revoked.get("/stats").await?.expect(200);
    let listed: Value = serde_json::from_str(&w.command(&["keys", "list", "--tenant", "acme", "--json"])?)?;
    let hint = |key: &&Value| revoked_key.starts_with(key["hint"].as_str().unwrap());
    let id = listed.as_array().unwrap().iter().find(hint).unwrap()["id"].as_str().unwrap().to_owned();
    w.command(&["keys", "revoke", &id])?;
    for (key, word) in [(&revoked, "revoked"), (&expired, "expired")] {
        let refused = key.wait_for("/stats", |a| a.status == 401).await?.expect_problem(401, "unauthorized");
        assert!(refused.text("detail").contains(word), "{}", refused.body);
        assert!(refused.headers["www-authenticate"].to_str()?.contains("invalid_token"));
    }
    let text = w.command(&["keys", "list"])?;
    assert!(text.contains("revoked") && text.contains("expired") && !text.contains(&revoked_key), "{text}");

    // As if it was copied badly.
    let mistyped = revoked_key.chars().rev().collect::<String>();
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200).body;
    for operation in &operations(&document) {
        let name = format!("{} {}", operation.method, operation.path);
        let is_read = operation.method == "GET" || READING_POSTS.contains(&operation.path.as_str());
        assert!(is_read || operation.scope != "read", "{name} changes something and needs no more than `read`");
        let (path, _) = ours.fill(&operation.path);
        let body = operation.has_body.then(|| json!({}));
        for api in [&w.api, &w.api.with_key("wrong"), &w.api.with_key(&mistyped), &expired, &revoked] {
            let refused = call(api, operation, &path, body.as_ref()).await?;
            assert!(refused.headers.contains_key("www-authenticate"), "{name}");
            refused.expect_problem(401, "unauthorized");
        }
        let weaker: &[&str] = match operation.scope.as_str() {
            "events:write" => &["read"],
            "read" => &["events:write"],
            "admin" => &["events:write", "read"],
            "operator" => &["events:write", "read", "admin"],
            other => panic!("teach tests/it/access.rs the scope {other} of {name}"),
        };
        for scope in weaker {
            let refused = call(&keys[scope], operation, &path, body.as_ref()).await?;
            let refused = refused.expect_problem(403, "forbidden");
            assert!(refused.headers["www-authenticate"].to_str()?.contains("insufficient_scope"), "{name}");
        }
    }
    // Each is good for what it is for.
    let event = json!({"event_type": "a", "payload": 1});
    keys["events:write"].post("/events", &event).await?.expect(202);
    keys["read"].get("/endpoints").await?.expect(200);
    let output = w.up.output();
    assert!(output.contains("THE INTERFACE IS OPEN"), "{output}");
    let refusals = output.lines().filter(|l| l.contains("wrong API key")).count();
    assert!((1..20).contains(&refusals), "logged now and then: {refusals}");
    assert!(!output.contains(&revoked_key[10..]), "no key is logged");
    // Uses are written now and then.
    let used = |a: &Answer| a.body["items"].as_array().unwrap().iter().any(|k| k["last_used_at"].is_string());
    keys["acme"].wait_for("/keys", used).await?;
    Ok(())
}

/// Two of each service: a key and its end are known to all of them, and with PostgreSQL away known keys go on.
#[tokio::test]
async fn all_pods_know_a_key_and_its_end_also_while_the_database_is_away() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let database = w.proxy("DATABASE_URL").await?;
    let _dispatcher = w.service("dispatcher", "dispatcher").await?;
    let (mut first, address) = w.service("ingest", "ingest").await?;
    let (_second, other) = w.service("ingest-2", "ingest").await?;
    let (_manager, manager) = w.service("dlq-manager", "dlq-manager").await?;
    let at = |address: &str, key: &str| Api::new(&format!("http://{address}")).with_key(key);
    let event = json!({"event_type": "a", "payload": 1});

    // The first key shuts the open door, everywhere.
    let admin =
        at(&address, "").post("/keys", &json!({"name": "a", "scopes": ["admin"]})).await?.expect(201).text("key");
    let doomed = at(&address, &admin).post("/keys", &json!({"name": "b", "scopes": ["read"]})).await?.expect(201);
    let (doomed, doomed_id) = (doomed.text("key"), doomed.text("id"));
    for address in [&address, &other, &manager] {
        let path = if *address == manager { "/dlq" } else { "/stats" };
        at(address, &doomed).get(path).await?.expect(200);
        Api::new(&format!("http://{address}")).wait_for(path, |a| a.status == 401).await?;
    }
    at(&other, &admin).delete(&format!("/keys/{doomed_id}")).await?.expect(204);
    at(&other, &doomed).get("/stats").await?.expect_problem(401, "unauthorized");
    for (address, path) in [(&address, "/stats"), (&manager, "/dlq")] {
        at(address, &doomed).wait_for(path, |a| a.status == 401).await?;
    }
    at(&address, &admin).post("/events", &event).await?.expect(202);

    // Its end writes the copy of the directory; the next one starts without a database.
    assert!(first.terminate().await?, "{}", first.output());
    database.cut();
    let _again = w.ingest_at("ingest-3", &address).await?;
    for address in [&address, &other] {
        at(address, &admin).post("/events", &event).await?.expect(202);
        at(address, &doomed).post("/events", &event).await?.expect_problem(401, "unauthorized");
        at(address, "").post("/events", &event).await?.expect_problem(401, "unauthorized");
    }
    Ok(())
}

/// All over HTTP: a tenant, its key, and an event that only that tenant sees.
#[tokio::test]
async fn an_operator_sets_a_tenant_up() -> anyhow::Result<()> {
    let w = World::start().await?;
    let operator = w.api.with_key(&w.key("default", "operator", &[])?);
    operator.post("/tenants", &json!({"id": "Not a tenant"})).await?.expect_problem(422, "validation-failed");
    operator.post("/tenants", &json!({"id": "acme"})).await?.expect(201);
    operator.post("/tenants", &json!({"id": "acme"})).await?.expect(200);
    let tenants = operator.get("/tenants").await?.expect(200).body["items"].to_string();
    assert!(tenants.contains("acme") && tenants.contains("default"), "{tenants}");
    let wish = json!({"name": "Shop", "scopes": ["admin", "events:write"]}).to_string();
    let headers = [("x-relay-tenant", "acme"), ("content-type", "application/json")];
    let made = operator.request("POST", "/api/v1/keys", &headers, Some(wish)).await?.expect(201);
    let acme = w.api.with_key(&made.text("key"));
    let id = acme.endpoint(&w.sink.url("/acme"), json!({})).await?.text("id");
    let event = acme.event(&id, "order.created", json!({"order_id": 42})).await?;
    acme.wait_status(&event, "delivered").await?;
    operator.get(&format!("/events/{event}")).await?.expect_problem(404, "event-not-found");
    operator.request("GET", &format!("/api/v1/events/{event}"), &headers[..1], None).await?.expect(200);
    Ok(())
}
