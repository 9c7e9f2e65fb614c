//! What each user of the shipped NATS configuration may and may not do, asked of the real server in its own protocol.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use relay_core::ids::TenantId;
use relay_servers::{ServerKind, Servers, ServersConfig, add_tenant};
use serde_json::{Value, json};

/// Each answer is there within this time; it only bounds a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server sent.
#[derive(Debug)]
enum Line {
    Message { subject: String, reply: Option<String>, body: Vec<u8> },
    Error(String),
    Pong,
}

/// A NATS client of a page: enough to see every line that the server sends.
struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    inbox: String,
    next: u64,
}

impl Client {
    /// `url` is `nats://[user:password@]127.0.0.1:port`.
    fn connect(url: &str, inbox: &str) -> Self {
        let rest = url.strip_prefix("nats://").unwrap();
        let (user, address) = rest.split_once('@').map_or((None, rest), |(user, address)| (Some(user), address));
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        let mut options = json!({"verbose": false, "pedantic": false, "headers": true, "lang": "test", "version": "1"});
        if let Some((user, password)) = user.and_then(|user| user.split_once(':')) {
            options["user"] = json!(user);
            options["pass"] = json!(password);
        }
        let mut client = Self { stream, reader, inbox: inbox.to_owned(), next: 0 };
        client.write(format!("CONNECT {options}\r\n").as_bytes());
        assert_eq!(client.until_pong(), Vec::<String>::new());
        client
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn subscribe(&mut self, subject: &str) {
        self.next += 1;
        let sid = self.next;
        self.write(format!("SUB {subject} {sid}\r\n").as_bytes());
    }

    fn publish(&mut self, subject: &str, reply: &str, body: &str) {
        self.write(format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len()).as_bytes());
    }

    /// The next line of interest.
    fn line(&mut self) -> Line {
        loop {
            let mut line = String::new();
            assert_ne!(self.reader.read_line(&mut line).unwrap(), 0, "the server closed the connection");
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[0] {
                "MSG" | "HMSG" => {
                    let mut body = vec![0; words.last().unwrap().parse::<usize>().unwrap() + 2];
                    self.reader.read_exact(&mut body).unwrap();
                    body.truncate(body.len() - 2);
                    let sizes = if words[0] == "MSG" { 1 } else { 2 };
                    let reply = (words.len() == 4 + sizes).then(|| words[3].to_owned());
                    return Line::Message { subject: words[1].to_owned(), reply, body };
                }
                "-ERR" => return Line::Error(line.trim().to_owned()),
                "PONG" => return Line::Pong,
                "PING" => self.write(b"PONG\r\n"),
                _ => {}
            }
        }
    }

    /// Everything that the server sent before it answered a PING: subjects of messages and texts of errors. What this
    /// client published before has been looked at by then.
    fn until_pong(&mut self) -> Vec<String> {
        self.write(b"PING\r\n");
        let mut seen = Vec::new();
        loop {
            match self.line() {
                Line::Message { subject, body, .. } => {
                    seen.push(format!("{subject} {}", String::from_utf8_lossy(&body)));
                }
                Line::Error(text) => seen.push(text),
                Line::Pong => return seen,
            }
        }
    }

    /// A request; `Err` is the server's "not permitted".
    fn request(&mut self, subject: &str, body: &str) -> Result<Value, String> {
        self.next += 1;
        let inbox = format!("{}.{}", self.inbox, self.next);
        self.subscribe(&inbox);
        self.publish(subject, &inbox, body);
        loop {
            match self.line() {
                Line::Message { subject, body, .. } if subject == inbox => {
                    return Ok(serde_json::from_slice(&body).unwrap_or(Value::Null));
                }
                Line::Message { .. } | Line::Pong => {}
                Line::Error(text) => return Err(text),
            }
        }
    }

    fn may(&mut self, subject: &str, body: &Value) -> Value {
        let answer = self.request(subject, &body.to_string()).unwrap_or_else(|error| panic!("{subject}: {error}"));
        assert!(answer.get("error").is_none(), "{subject}: {answer}");
        answer
    }

    fn may_not(&mut self, subject: &str) {
        let answer = self.request(subject, "{}");
        assert!(answer.as_ref().is_err_and(|text| text.contains("Permissions Violation")), "{subject}: {answer:?}");
    }
}

fn nats() -> (tempfile::TempDir, Servers) {
    let dir = tempfile::tempdir().unwrap();
    let config = ServersConfig {
        tools_dirs: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")],
        ..ServersConfig::new(dir.path())
    };
    let servers = Servers::start(&config.only(&[ServerKind::Nats])).unwrap();
    (dir, servers)
}

fn service(servers: &Servers, user: &str) -> Client {
    Client::connect(&servers.nats_url_of(user).unwrap(), &format!("_R_{user}"))
}

fn anonymous(servers: &Servers) -> Client {
    Client::connect(&servers.nats_producer_url().unwrap(), "_INBOX")
}

/// Declares what the services declare, as `user`.
fn declare(client: &mut Client) {
    client.may(
        "$JS.API.STREAM.CREATE.EVENTS_IMPORT",
        &json!({"name": "EVENTS_IMPORT", "subjects": ["relay.import.none"]}),
    );
    client.may(
        "$JS.API.STREAM.CREATE.EVENTS",
        &json!({"name": "EVENTS", "subjects": ["relay.events.>", "relay.bundles.0"], "duplicate_window": 0,
            "sources": [{"name": "EVENTS_IMPORT"}]}),
    );
    client.may("$JS.API.STREAM.CREATE.JOBS", &json!({"name": "JOBS", "subjects": ["relay.jobs.*.0"]}));
    client.may("$JS.API.STREAM.CREATE.DLQ", &json!({"name": "DLQ", "subjects": ["relay.dlq.>"]}));
    client.may(
        "$JS.API.CONSUMER.CREATE.EVENTS.dispatcher",
        &json!({"stream_name": "EVENTS", "config": {"name": "dispatcher", "durable_name": "dispatcher",
            "ack_policy": "explicit"}}),
    );
    for lane in ["fresh", "retry", "replay", "slow"] {
        let name = format!("deliverer-{lane}");
        let filter = format!("relay.jobs.{lane}.>");
        client.may(
            &format!("$JS.API.CONSUMER.CREATE.JOBS.{name}.{filter}"),
            &json!({"stream_name": "JOBS", "config": {"name": name, "durable_name": name, "ack_policy": "explicit",
                "filter_subject": filter}}),
        );
    }
}

/// Pulls one message, acknowledges it and returns its subject.
fn pull(client: &mut Client, stream: &str, consumer: &str) -> String {
    client.next += 1;
    let inbox = format!("{}.pull{}", client.inbox, client.next);
    client.subscribe(&inbox);
    client.publish(&format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"), &inbox, r#"{"batch": 1}"#);
    loop {
        match client.line() {
            Line::Message { subject, reply: Some(reply), .. } if reply.starts_with("$JS.ACK.") => {
                client.publish(&reply, "", "+ACK");
                assert_eq!(client.until_pong(), Vec::<String>::new());
                return subject;
            }
            Line::Error(text) => panic!("{text}"),
            Line::Message { .. } | Line::Pong => {}
        }
    }
}

fn stored(client: &mut Client) -> Value {
    client.may("$JS.API.STREAM.INFO.EVENTS", &json!({"subjects_filter": ">"}))["state"]["subjects"].clone()
}

#[test]
fn each_service_can_do_its_work_and_no_more() {
    let (_dir, servers) = nats();
    for user in ["ingest", "dispatcher", "deliverer", "dlq-manager", "relay"] {
        let mut client = service(&servers, user);
        declare(&mut client);
        client.may("$JS.API.INFO", &json!({}));
        client.may("$JS.API.CONSUMER.INFO.EVENTS.dispatcher", &json!({}));
        let jsz = client.may("$SYS.REQ.SERVER.PING.JSZ", &json!({"config": true}));
        assert_eq!(jsz["data"]["config"]["sync_always"], true, "{jsz}");
        client.publish("relay.hint.due", "", "");
        client.subscribe("relay.hint.>");
        assert_eq!(client.until_pong(), Vec::<String>::new(), "{user}");
        for forbidden in [
            "$JS.API.STREAM.DELETE.EVENTS",
            "$JS.API.STREAM.UPDATE.EVENTS",
            "$JS.API.STREAM.MSG.GET.JOBS",
            "$JS.API.CONSUMER.DELETE.EVENTS.dispatcher",
            "$JS.API.CONSUMER.CREATE.EVENTS.spy",
            "relay.events.default.order.created",
        ] {
            client.may_not(forbidden);
        }
        // Which streams are used is the dispatcher's to decide.
        if user != "dispatcher" && user != "relay" {
            client.may_not("$JS.API.STREAM.UPDATE.JOBS");
            client.may_not("$JS.API.STREAM.UPDATE.EVENTS_1");
            client.may_not("$JS.API.CONSUMER.CREATE.EVENTS_1.dispatcher");
        }
        // What EVENTS retains is read by `webhook-relay fsck` alone, as the user of the all-in-one.
        if user != "relay" {
            client.may_not("$JS.API.STREAM.MSG.GET.EVENTS");
        }
        client.subscribe("_INBOX.>");
        client.subscribe(&format!("_R_{}.>", if user == "ingest" { "relay" } else { "ingest" }));
        assert_eq!(client.until_pong().len(), 2, "{user} may read somebody else's inbox");
    }
    let mut ingest = service(&servers, "ingest");
    let mut dispatcher = service(&servers, "dispatcher");
    let mut deliverer = service(&servers, "deliverer");
    let mut dlq_manager = service(&servers, "dlq-manager");
    ingest.may("relay.bundles.0", &json!({}));
    assert_eq!(pull(&mut dispatcher, "EVENTS", "dispatcher"), "relay.bundles.0");
    dispatcher.may("relay.jobs.fresh.0", &json!({}));
    assert_eq!(pull(&mut deliverer, "JOBS", "deliverer-fresh"), "relay.jobs.fresh.0");
    deliverer.may("relay.dlq.default.gone", &json!({}));
    dlq_manager.may("relay.bundles.0", &json!({}));
    dispatcher.may("$JS.API.STREAM.PURGE.EVENTS", &json!({"seq": 1}));
    dispatcher.may("$JS.API.STREAM.PURGE.JOBS", &json!({"seq": 1}));

    ingest.may_not("$JS.API.CONSUMER.MSG.NEXT.EVENTS.dispatcher");
    ingest.may_not("relay.jobs.fresh.0");
    ingest.may_not("$JS.API.STREAM.PURGE.EVENTS");
    deliverer.may_not("$JS.API.CONSUMER.MSG.NEXT.EVENTS.dispatcher");
    deliverer.may_not("relay.bundles.0");
    dispatcher.may_not("relay.bundles.0");
    dispatcher.may_not("$JS.API.CONSUMER.MSG.NEXT.JOBS.deliverer-fresh");

    // The deliverer's consumers are on JOBS alone.
    deliverer.may_not("$JS.API.CONSUMER.CREATE.EVENTS_1.deliverer-fresh.relay.bundles.1");
    deliverer.may_not("$JS.API.CONSUMER.MSG.NEXT.EVENTS_1.dispatcher");

    let mut relay = service(&servers, "relay");
    relay.may("relay.bundles.0", &json!({}));
    pull(&mut relay, "EVENTS", "dispatcher");
    relay.may("relay.jobs.retry.0", &json!({}));
    pull(&mut relay, "JOBS", "deliverer-retry");
}

#[test]
fn an_anonymous_producer_sends_events_of_tenant_default_and_nothing_else() {
    let (_dir, servers) = nats();
    let mut relay = service(&servers, "relay");
    declare(&mut relay);
    let mut producer = anonymous(&servers);
    let ack = producer.may("relay.events.default.order.created", &json!({"n": 1}));
    assert_eq!((ack["stream"].as_str(), ack["seq"].as_u64()), (Some("EVENTS"), Some(1)));
    // Without a reply subject too: `nats pub` does that.
    producer.publish("relay.events.default.plain", "", "{}");
    assert_eq!(producer.until_pong(), Vec::<String>::new());
    for forbidden in [
        "relay.events.acme.order.created",
        "relay.bundles.0",
        "relay.jobs.fresh.0",
        "relay.dlq.default.gone",
        "relay.hint.due",
        "$SYS.REQ.SERVER.PING.JSZ",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.EVENTS",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.API.STREAM.MSG.GET.EVENTS",
        "$JS.API.CONSUMER.CREATE.EVENTS.spy",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.dispatcher",
        "$SYS.REQ.SERVER.PING",
    ] {
        producer.may_not(forbidden);
    }
    assert_eq!(stored(&mut relay), json!({"relay.events.default.order.created": 1, "relay.events.default.plain": 1}));
}

#[test]
fn an_anonymous_producer_sees_nobodys_events() {
    let (_dir, servers) = nats();
    let mut relay = service(&servers, "relay");
    declare(&mut relay);
    let mut spy = anonymous(&servers);
    spy.subscribe("_INBOX.>");
    assert_eq!(spy.until_pong(), Vec::<String>::new());
    for subject in [">", "relay.>", "_R_relay.>", "$JS.>", "*.events.>", "$SYS.>"] {
        spy.subscribe(subject);
        let seen = spy.until_pong();
        assert!(seen.len() == 1 && seen[0].contains("Permissions Violation"), "{subject}: {seen:?}");
    }
    // Others work: an event of the default tenant, a bundle, both pulled by the service.
    let mut producer = Client::connect(&servers.nats_producer_url().unwrap(), "_INBOX_of_another");
    producer.publish("relay.events.default.order.created", "", r#"{"secret": 1}"#);
    assert_eq!(producer.until_pong(), Vec::<String>::new());
    relay.may("relay.bundles.0", &json!({"secret": 2}));
    assert_eq!(pull(&mut relay, "EVENTS", "dispatcher"), "relay.events.default.order.created");
    assert_eq!(pull(&mut relay, "EVENTS", "dispatcher"), "relay.bundles.0");
    assert_eq!(spy.until_pong(), Vec::<String>::new());
}

#[test]
fn a_reply_subject_carries_an_acknowledgement_nowhere() {
    let (_dir, servers) = nats();
    let mut relay = service(&servers, "relay");
    declare(&mut relay);
    let mut producer = anonymous(&servers);
    for reply in [
        "relay.events.acme.order.created",
        "relay.bundles.0",
        "relay.jobs.fresh.0",
        "_R_relay.pull",
        "$JS.API.STREAM.PURGE.EVENTS",
    ] {
        producer.publish("relay.events.default.order.created", reply, "{}");
        producer.until_pong();
    }
    // An acknowledged publish behind them: the others have been dealt with.
    producer.may("relay.events.default.order.created", &json!({}));
    let subjects = stored(&mut relay);
    let subjects = subjects.as_object().unwrap();
    assert_eq!(subjects.keys().collect::<Vec<_>>(), ["relay.events.default.order.created"]);
    let jobs = relay.may("$JS.API.STREAM.INFO.JOBS", &json!({}));
    assert_eq!(jobs["state"]["messages"], 0);
}

#[test]
fn a_tenants_user_sends_events_of_its_tenant_and_nothing_else() {
    let (dir, servers) = nats();
    let mut relay = service(&servers, "relay");
    declare(&mut relay);
    let acme = TenantId::parse("acme").unwrap();
    let user = add_tenant(dir.path(), &acme).unwrap().unwrap();
    assert!(user.is_live);
    let port = servers.port(ServerKind::Nats).unwrap();
    let url = format!("nats://{}:{}@127.0.0.1:{port}", user.user, user.password);
    let mut producer = Client::connect(&url, "_INBOX");
    producer.may("relay.events.acme.order.created", &json!({}));
    for forbidden in ["relay.events.default.order.created", "relay.bundles.0", "$JS.API.INFO", "relay.hint.due"] {
        producer.may_not(forbidden);
    }
    let again = add_tenant(dir.path(), &acme).unwrap().unwrap();
    assert_eq!((&user.user, &user.password), (&again.user, &again.password), "repeating it changes nothing");
    // Another tenant's programs don't reach it, and the services were not disturbed.
    anonymous(&servers).may_not("relay.events.acme.order.created");
    assert_eq!(stored(&mut relay), json!({"relay.events.acme.order.created": 1}));
    // An acknowledgement goes nowhere else.
    producer.publish("relay.events.acme.a", "relay.events.default.a", "{}");
    producer.until_pong();
    producer.may("relay.events.acme.b", &json!({}));
    assert_eq!(stored(&mut relay).get("relay.events.default.a"), None);
}
