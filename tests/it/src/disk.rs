//! A small disk under one of the servers: a file system in memory that nobody else sees, made less roomy and roomy again
//! while the server runs. It takes the right to mount one, so root, or a container that may.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::tools::run;

/// Puts a copy of `$1` on a file system of its own in its place, then becomes the rest of its arguments. Both need a mount
/// namespace of their own, which goes with the last process in it.
const MOVE_IN: &str = r#"
set -e
dir=$1; shift
mkdir -p "$dir.disk"
mount -t tmpfs -o size=2g relay-test "$dir.disk"
cp -a "$dir/." "$dir.disk/"
mount --move "$dir.disk" "$dir"
exec "$@"
"#;

/// The disk under a directory, for the process that has moved in and what it starts.
pub struct Disk {
    dir: PathBuf,
    process: u32,
}

impl Disk {
    /// The command line, for `unshare`, of a program that finds `dir` on a disk of its own.
    pub(crate) fn arguments(dir: &Path, program: &Path, args: &[String]) -> anyhow::Result<Vec<String>> {
        let probe = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "relay-test", "/mnt"]).output();
        let probe = probe.context("starting unshare (package util-linux)")?;
        anyhow::ensure!(
            probe.status.success(),
            "NOT TESTED: a full disk takes the right to mount a small one. Run this test as root, outside of a container or \
             in one with CAP_SYS_ADMIN. {}",
            String::from_utf8_lossy(&probe.stderr)
        );
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let fixed = ["-m", "sh", "-c", MOVE_IN, "sh"].map(str::to_owned);
        Ok(fixed.into_iter().chain([text(dir), text(program)]).chain(args.iter().cloned()).collect())
    }

    /// The disk of a process that was started so.
    pub(crate) fn of(dir: PathBuf, process: u32) -> Self {
        Self { dir, process }
    }

    /// Leaves only so much free.
    pub fn leave(&self, kib: u64) -> anyhow::Result<()> {
        let used = self.run(&["df", "-k", "--output=used"])?;
        let used: u64 = used.lines().last().unwrap_or_default().trim().parse().with_context(|| used.clone())?;
        self.resize(&format!("{}k", used + kib))
    }

    /// Gives it more than anybody needs.
    pub fn grow(&self) -> anyhow::Result<()> {
        self.resize("2g")
    }

    fn resize(&self, size: &str) -> anyhow::Result<()> {
        self.run(&["mount", "-o", &format!("remount,size={size}")]).map(drop)
    }

    /// Runs a program on the directory, as the process sees it.
    fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        run(Command::new("nsenter").args(["-m", "-t", &self.process.to_string()]).args(command).arg(&self.dir))
    }
}
