//! Examples of requests and answers, by operation: what a running system said, kept in `examples.json`. In one file, so
//! that they tell one story (the event of the one example is the event of the other), and away from the code, which they
//! would drown.
//!
//! A black-box test checks that every operation has its examples and that none is left over.

use serde_json::Value;

/// `{"<operation id>": {"request": …, "answers": {"<status>": …}}}`.
const EXAMPLES: &str = include_str!("examples.json");

/// Adds the examples to a document's operations. What has one already keeps it.
pub(super) fn add(document: &mut Value) {
    let examples: Value = serde_json::from_str(EXAMPLES).expect("a test reads this file");
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let methods = paths.filter_map(|(_, methods)| methods.as_object_mut()).flatten();
    for (_, operation) in methods {
        let of = &examples[operation["operationId"].as_str().unwrap_or_default()];
        if let Some(body) = operation.get_mut("requestBody") {
            add_to(body, &of["request"]);
        }
        for (status, answer) in of["answers"].as_object().into_iter().flatten() {
            if let Some(documented) = operation["responses"].get_mut(status) {
                add_to(documented, answer);
            }
        }
    }
}

/// Adds an example to each content type of a body.
fn add_to(body: &mut Value, example: &Value) {
    if example.is_null() {
        return;
    }
    for (_, content) in body["content"].as_object_mut().into_iter().flatten() {
        if content.get("example").is_none() {
            content["example"] = example.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_get_theirs_and_keep_what_they_have() {
        let content = || json!({"content": {"application/json": {}}});
        let had = json!({"content": {"application/json": {"example": 1}}});
        let mut document = json!({"paths": {
            "/a": {"post": {"operationId": "send_event", "requestBody": content(), "responses": {"202": content(), "404": content()}}},
            "/b": {"post": {"operationId": "send_event", "requestBody": had.clone(), "responses": {}}},
            "/c": {"get": {"operationId": "unheard_of", "responses": {"200": content()}}},
        }});
        add(&mut document);
        let sent = &document["paths"]["/a"]["post"];
        assert_eq!(sent["requestBody"]["content"]["application/json"]["example"]["event_type"], "order.created");
        assert!(sent["responses"]["202"]["content"]["application/json"]["example"]["id"].is_string());
        assert_eq!(sent["responses"]["404"], content());
        assert_eq!(document["paths"]["/b"]["post"]["requestBody"], had);
        assert_eq!(
            document["paths"]["/c"]["get"],
            json!({"operationId": "unheard_of", "responses": {"200": content()}})
        );
    }
}
