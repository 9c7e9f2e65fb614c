//! Services and their servers: who starts first doesn't matter, and who goes away may come back. No service is restarted.

use std::time::Duration;

use anyhow::ensure;
use it::api::{Answer, PATIENCE};
use it::world::Launched;
use it::{Api, World};
use serde_json::json;
use tokio::time::Instant;

const SERVICES: [&str; 4] = ["ingest", "dispatcher", "deliverer", "dlq-manager"];

/// One service that runs.
struct Service {
    name: &'static str,
    launched: Launched,
    health: Api,
}

impl Service {
    /// What it says about itself.
    async fn ready(&self) -> anyhow::Result<Answer> {
        self.health.request("GET", "/health/ready", &[], None).await
    }

    /// Waits until it says so.
    async fn wait(&mut self, status: u16) -> anyhow::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            ensure!(
                self.launched.process.ended().is_none(),
                "{} ended:\n{}",
                self.name,
                self.launched.process.output()
            );
            if let Ok(answer) = self.ready().await
                && answer.status == status
            {
                return Ok(answer);
            }
            ensure!(
                Instant::now() < deadline,
                "{} never said {status}:\n{}",
                self.name,
                self.launched.process.output()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn launch(w: &World) -> anyhow::Result<Vec<Service>> {
    SERVICES
        .into_iter()
        .map(|name| {
            let launched = w.launch(name, name, None, &[], &[])?;
            let health = Api::new(&format!("http://{}", launched.health));
            Ok(Service { name, launched, health })
        })
        .collect()
}

fn interface(services: &[Service], name: &str) -> Api {
    let service = services.iter().find(|service| service.name == name);
    let address = service.and_then(|service| service.launched.interface.clone());
    Api::new(&format!("http://{}", address.expect("it has an interface")))
}

/// Everything waits for servers that aren't there, says so, and works when they come.
#[tokio::test]
async fn services_start_before_their_servers() -> anyhow::Result<()> {
    let mut w = World::absent().await?;
    let mut services = launch(&w)?;
    for service in &mut services {
        let answer = service.wait(503).await?;
        assert_eq!(answer.body["status"], "unready", "{}", answer.body);
        assert!(answer.body["checks"]["start"].as_str().is_some_and(|why| why.contains("waits")), "{}", answer.body);
        service.health.request("GET", "/health/live", &[], None).await?.expect(200);
        service.launched.process.wait_said("waiting for it").await?;
    }
    for name in ["ingest", "dlq-manager"] {
        let answer = interface(&services, name).get("/stats").await?.expect_problem(503, "service-unavailable");
        assert!(answer.headers.contains_key("retry-after"));
    }

    w.bring_back().await?;
    for service in &mut services {
        service.wait(200).await?;
    }
    let mut api = interface(&services, "ingest");
    std::mem::swap(&mut w.api, &mut api);
    // The directory is read when the database is there, which an ingest doesn't wait for.
    w.api.wait_for("/endpoints", |answer| answer.status == 200).await?;
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({})).await?.text("id");
    let event = w.api.event(&endpoint, "a.b", json!({})).await?;
    w.api.wait_status(&event, "delivered").await?;
    interface(&services, "dlq-manager").get("/dlq").await?.expect(200);

    let password = w.link("DATABASE_URL")?;
    let password =
        password.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(user, _)| user.to_owned());
    let password = password.and_then(|user| user.split_once(':').map(|(_, password)| password.to_owned()));
    for service in &mut services {
        let (name, output) = (service.name, service.launched.process.output());
        // An ingest doesn't wait for the database.
        let first = if name == "ingest" { "NATS at 127.0.0.1:" } else { "PostgreSQL at 127.0.0.1:" };
        assert!(
            output.lines().any(|line| line.contains(first) && line.contains("waiting for it")),
            "{name}:\n{output}"
        );
        assert!(output.contains(" is there"), "{name}:\n{output}");
        let waits = output.lines().filter(|line| line.contains("waiting for it")).count();
        assert!(waits <= 3, "{name} says it {waits} times:\n{output}");
        assert!(password.as_ref().is_none_or(|password| !output.contains(password)), "{name} shows a password");
        assert!(service.launched.process.terminate().await?, "{name}:\n{output}");
    }
    Ok(())
}

/// So does the all-in-one where the servers are somebody else's; it brings the schema up to date when the database is there.
#[tokio::test]
async fn the_all_in_one_starts_before_its_servers() -> anyhow::Result<()> {
    let mut w = World::absent().await?;
    let (mut told_to_end, _) = w.launch_all("told-to-end", &[])?;
    told_to_end.wait_said("waiting for it").await?;
    ensure!(told_to_end.terminate().await?, "{}", told_to_end.output());

    let (mut up, address) = w.launch_all("waits", &[])?;
    // It says why.
    up.wait_said("onnection refused").await?;
    w.bring_back().await?;
    up.wait_ready(&format!("http://{address}/health/ready")).await?;
    w.use_api(&address);
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({})).await?.text("id");
    let event = w.api.event(&endpoint, "a.b", json!({})).await?;
    w.api.wait_status(&event, "delivered").await?;
    ensure!(up.terminate().await?, "{}", up.output());
    Ok(())
}

/// A service that is told to end while it waits ends at once.
#[tokio::test]
async fn a_start_can_be_ended() -> anyhow::Result<()> {
    let w = World::absent().await?;
    for mut service in launch(&w)? {
        service.wait(503).await?;
        assert!(
            service.launched.process.terminate().await?,
            "{}:\n{}",
            service.name,
            service.launched.process.output()
        );
    }
    Ok(())
}

/// Each server goes away, by an end of its connections and by silence, and comes back: those that need it say that they
/// aren't ready, then that they are, and events go on.
#[tokio::test]
async fn servers_go_and_come_back() -> anyhow::Result<()> {
    let mut w = World::servers().await?;
    let (database, redis, nats) =
        (w.proxy("DATABASE_URL").await?, w.proxy("REDIS_URL").await?, w.proxy("NATS_URL").await?);
    let mut services = launch(&w)?;
    for service in &mut services {
        service.wait(200).await?;
    }
    w.api = interface(&services, "ingest");
    let endpoint = w.api.endpoint(&w.sink.url("/hook"), json!({"timeout_seconds": 5})).await?.text("id");
    // An ingest accepts while the database is away; nobody needs Redis to go on.
    let needs: [(&str, &it::Proxy, &[&str]); 3] = [
        ("DATABASE_URL", &database, &["dispatcher", "deliverer", "dlq-manager"]),
        ("NATS_URL", &nats, &SERVICES),
        ("REDIS_URL", &redis, &[]),
    ];
    for (server, proxy, needed_by) in needs {
        for is_silent in [false, true] {
            if is_silent {
                proxy.black_hole()
            } else {
                proxy.cut()
            }
            for service in services.iter_mut().filter(|service| needed_by.contains(&service.name)) {
                let answer = service.wait(503).await?;
                let wrong = answer.body["checks"].as_object().unwrap().values().filter(|said| *said != "ok").count();
                assert_eq!(wrong, 1, "{server} {}: {}", service.name, answer.body);
            }
            for service in services.iter().filter(|service| !needed_by.contains(&service.name)) {
                assert_eq!(service.ready().await?.status, 200, "{server} {}", service.name);
            }
            let meanwhile = match server {
                "REDIS_URL" | "DATABASE_URL" => Some(w.api.event(&endpoint, "a.b", json!({"during": server})).await?),
                _ => None,
            };
            if let (Some(event), "REDIS_URL") = (&meanwhile, server) {
                w.api.wait_status(event, "delivered").await?;
            }
            proxy.restore();
            for service in &mut services {
                service.wait(200).await?;
            }
            let event = w.api.event(&endpoint, "a.b", json!({"after": server})).await?;
            for event in meanwhile.iter().chain([&event]) {
                w.api.wait_status(event, "delivered").await?;
            }
        }
    }
    for service in &mut services {
        let process = &mut service.launched.process;
        assert!(process.ended().is_none() && process.terminate().await?, "{}:\n{}", service.name, process.output());
    }
    Ok(())
}
