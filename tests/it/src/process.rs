//! Processes of the system: started from the built binaries, their output kept in files, ended when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::api::PATIENCE;

/// A built binary of the workspace: beside the test's own, or in `RELAY_BIN_DIR`.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let dir = match std::env::var_os("RELAY_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let me = std::env::current_exe()?;
            let dir = me.parent().context("a program lies in a directory")?;
            // Tests lie in target/<profile>/deps, programs beside the binaries.
            let above = dir.parent().filter(|_| dir.ends_with("deps"));
            above.unwrap_or(dir).to_path_buf()
        }
    };
    let path = dir.join(name);
    if !path.exists() {
        bail!("{} is not built: cargo build --workspace --bins", path.display());
    }
    Ok(path)
}

/// A port that is free now and that no other test picks: each test process has 20 of its own, below the range from which
/// the kernel takes ports for connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 1_100).expect("below 1,100") * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 20;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A count that a process shows at this URL; `None` when it doesn't, or doesn't answer soon.
pub async fn metric(url: &str, name: &str) -> Option<u64> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(500)).build().ok()?;
    let text = client.get(url).send().await.ok()?.text().await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// How a service of its own is started on free ports of loopback.
pub struct ServiceFlags {
    /// Its command line.
    pub args: Vec<String>,
    /// Where its health is.
    pub health: String,
    /// Where its interface is, if it has one.
    pub interface: Option<String>,
}

impl ServiceFlags {
    /// For a service's binary; `interface` where it must listen at an address. State is kept below `dir`.
    pub fn new(binary: &str, dir: &Path, interface: Option<String>) -> Self {
        let free = || format!("127.0.0.1:{}", free_port());
        let health = free();
        let mut args = vec!["--health-listen".to_owned(), health.clone()];
        let has_interface = matches!(binary, "ingest" | "dlq-manager");
        let interface = has_interface.then(|| interface.unwrap_or_else(free));
        if let Some(address) = &interface {
            args.extend(["--listen".to_owned(), address.clone()]);
            if binary == "ingest" {
                // Its own, and that of the next one on this address.
                let state = dir.join(format!("state-{}", address.replace(':', "-")));
                args.extend(["--state-dir".to_owned(), state.to_string_lossy().into_owned()]);
            }
        }
        if matches!(binary, "ingest" | "deliverer") {
            args.extend(["--allow-network".to_owned(), "127.0.0.0/8".to_owned()]);
        }
        Self { args, health, interface }
    }
}

/// A running process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a binary; its output goes to `<dir>/<name>.log`.
    pub fn start(
        dir: &Path,
        name: &str,
        binary: &Path,
        args: &[String],
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(binary);
        // What is set around the tests is not for the systems under test.
        for name in
            ["DATABASE_URL", "REDIS_URL", "NATS_URL", "RELAY_API_KEY", "RELAY_SECRETS_KEY", "RELAY_SECRETS_KEY_FILE"]
        {
            command.env_remove(name);
        }
        let child = command
            .args(args)
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until an HTTP GET of `url` answers 200.
    pub async fn wait_ready(&mut self, url: &str) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.output());
            }
            if client.get(url).send().await.is_ok_and(|a| a.status().as_u16() == 200) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready at {url} after 90 s:\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it had resident so far, in bytes (`VmHWM`).
    pub fn resident_peak_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        let kib: u64 = kib.with_context(|| format!("{} shows no VmHWM", self.name))?;
        Ok(kib * 1024)
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it has ended by itself.
    pub async fn wait_end(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} goes on:\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it has printed these words.
    pub async fn wait_said(&self, words: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.output().contains(words) {
            if Instant::now() > deadline {
                bail!("{} never says \"{words}\":\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Sends a signal by name, such as `STOP` or `CONT`, and waits for nothing.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status()?;
        Ok(())
    }

    /// `kill -9`, and gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; waits for the end, and says whether it was a success.
    pub async fn terminate(&mut self) -> anyhow::Result<bool> {
        self.signal("TERM")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() > deadline {
                bail!("{} doesn't end on SIGTERM:\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // A clean end first: what it started ends with it.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
