//! Signatures are checked by libraries that others wrote, and the examples of the README run: with packages from
//! PyPI, installed into a virtual environment of the test's own.

use std::process::Command;

use base64::Engine as _;
use it::World;
use it::tools::{python, repository, run};
use serde_json::json;

const VERIFY: &str = r"
import base64, json, sys
import stripe
from standardwebhooks import Webhook
case = json.load(sys.stdin)
body = base64.b64decode(case['body'])
for secret in case['secrets']:
    stripe.WebhookSignature.verify_header(body.decode(), case['headers']['x-webhook-signature'], secret, 300)
    Webhook(secret).verify(body, case['headers'])
try:
    stripe.WebhookSignature.verify_header(body.decode() + ' ', case['headers']['x-webhook-signature'], case['secrets'][0], 300)
except stripe.SignatureVerificationError:
    pass
else:
    sys.exit('a changed body verified')
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
content = b'.'.join([case['headers'][h].encode() for h in ('webhook-id', 'webhook-timestamp')] + [body])
signatures = [base64.b64decode(s[4:]) for s in case['headers']['webhook-signature'].split(' ') if s.startswith('v1a,')]
assert len(signatures) == len(case['keys']) == 2
for key, signature in zip(case['keys'], signatures):
    assert key.startswith('whpk_')
    Ed25519PublicKey.from_public_bytes(base64.b64decode(key[5:])).verify(signature, content)
print('verified')
";

#[tokio::test]
async fn the_stripe_and_standardwebhooks_libraries_verify() -> anyhow::Result<()> {
    let w = World::start().await?;
    let python =
        python(w.data("python"), &["standardwebhooks==1.0.1", "stripe==16.1.0", "cryptography==46.0.3"]).await?;
    let schemes = json!({"signature_schemes": ["webhook-relay", "standard-v1", "standard-v1a"]});
    let created = w.api.endpoint(&w.sink.url("/l"), schemes).await?;
    let id = created.text("id");
    let rotated = w.api.post(&format!("/endpoints/{id}/rotate-secret"), &json!({})).await?.expect(200);
    w.api.event(&id, "order.created", json!({"text": "é \u{1F600}"})).await?;
    let received = w.sink.wait("/l", 1).await?.remove(0);
    let headers: serde_json::Map<_, _> =
        ["x-webhook-signature", "webhook-id", "webhook-timestamp", "webhook-signature"]
            .map(|name| (name.to_owned(), json!(received.header(name))))
            .into_iter()
            .collect();
    let case = json!({
        "body": base64::engine::general_purpose::STANDARD.encode(&received.body),
        "headers": headers,
        "keys": [rotated.text("public_key"), created.text("public_key")],
        "secrets": [created.text("signing_secret"), rotated.text("signing_secret")],
    });
    let file = w.data("case.json");
    std::fs::write(&file, case.to_string())?;
    let said = run(Command::new(python).args(["-c", VERIFY]).stdin(std::fs::File::open(file)?))?;
    assert_eq!(said.trim(), "verified");
    Ok(())
}

#[tokio::test]
async fn the_publishing_examples_run() -> anyhow::Result<()> {
    let w = World::start().await?;
    let python = python(w.data("python"), &["nats-py==2.16.0"]).await?;
    w.api.endpoint(&w.sink.url("/x"), json!({"event_types_filter": ["order.created"]})).await?;
    let said = run(Command::new(python).arg(repository().join("examples/publish.py")).arg(&w.nats_url))?;
    assert!(said.starts_with("accepted at position"), "{said}");
    assert_eq!(&w.sink.wait("/x", 1).await?[0].body[..], br#"{"order_id": 42, "total": 99.99}"#);
    let me = std::env::current_exe()?;
    let example = me.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps").join("examples/publish");
    let said = run(Command::new(example).arg(&w.nats_url))?;
    assert!(said.starts_with("accepted at position"), "{said}");
    assert_eq!(&w.sink.wait("/x", 2).await?[1].body[..], br#"{"order_id": 43, "total": 1.5}"#);
    Ok(())
}
