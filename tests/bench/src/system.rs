//! The system under test: `webhook-relay up` as a user starts it, in a directory of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// A running system; ended when dropped.
pub struct System {
    child: Child,
    listen: String,
    _data: tempdir::Dir,
}

mod tempdir {
    //! A directory that is removed at the end.
    use std::path::PathBuf;

    /// The directory.
    pub struct Dir(pub PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl System {
    /// Starts it and waits until its interface listens.
    pub fn start(binary: &Path) -> anyhow::Result<Self> {
        if !binary.exists() {
            bail!("{} does not exist: run `make build` first", binary.display());
        }
        let data = tempdir::Dir(std::env::temp_dir().join(format!("relay-bench-{}", std::process::id())));
        std::fs::create_dir_all(&data.0)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let log = std::fs::File::create(data.0.join("up.log"))?;
        let child = Command::new(binary)
            .args(["up", "--data-dir"])
            .arg(data.0.join("data"))
            .args(["--listen", &listen, "--postgres-port", "0", "--redis-port", "0", "--nats-port", "0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut system = Self { child, listen, _data: data };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(&system.listen).is_err() {
            if let Some(status) = system.child.try_wait()? {
                let log = std::fs::read_to_string(system._data.0.join("up.log")).unwrap_or_default();
                bail!("the system ended with {status}:\n{log}");
            }
            if Instant::now() > deadline {
                bail!("the system does not listen on {} after a minute", system.listen);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(system)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its interface.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Its ledger.
    pub fn database_url(&self) -> anyhow::Result<String> {
        let links = std::fs::read_to_string(self._data.0.join("data").join("servers.env"))?;
        let url = links.lines().find_map(|l| l.strip_prefix("DATABASE_URL="));
        Ok(url.context("servers.env has no DATABASE_URL")?.to_owned())
    }

    /// Registers `n` endpoints, the i-th at `url(i)`, with `settings` beside name and address.
    pub async fn register(
        &self,
        n: usize,
        url: impl Fn(usize) -> String,
        settings: &serde_json::Value,
    ) -> anyhow::Result<Vec<String>> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut ids = Vec::new();
        for i in 0..n {
            let mut body = settings.clone();
            body["name"] = format!("bench {i}").into();
            body["url"] = url(i).into();
            let answer = client
                .post(format!("{}/api/v1/endpoints", self.url()))
                .header("content-type", "application/json")
                .body(body.to_string())
                .send()
                .await?;
            let status = answer.status();
            let text = answer.text().await?;
            if status.as_u16() != 201 {
                bail!("registering an endpoint: {status} {text}");
            }
            let created: serde_json::Value = serde_json::from_str(&text)?;
            ids.push(created["id"].as_str().context("the answer has no id")?.to_owned());
        }
        Ok(ids)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // SIGTERM first, so that the servers below it end cleanly.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
