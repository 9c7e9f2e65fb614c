//! A database cluster that is made once and copied for each test. Processes that want it at the same time wait for the one
//! that makes it (a file lock). It lies beside the other temporary files and is made anew when it is missing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use relay_servers::{ServerKind, Servers};

/// Raised when a cluster that an older version made must not be used.
const FORMAT: u32 = 1;
/// What of a data directory makes the cluster: its files, and the passwords that it knows.
const PARTS: [&str; 2] = ["postgres", "credentials.json"];

/// Puts a fresh cluster into `data_dir`.
pub(crate) fn copy_to(data_dir: &Path) -> anyhow::Result<()> {
    let template = template()?;
    fs::create_dir_all(data_dir)?;
    for part in PARTS {
        // `cp` keeps the owner: as root the files belong to PostgreSQL's user.
        let status =
            Command::new("cp").args(["-a", "--reflink=auto"]).arg(template.join(part)).arg(data_dir).status()?;
        ensure!(status.success(), "copying {} failed", template.join(part).display());
    }
    Ok(())
}

/// The template's directory; made when it is not there.
fn template() -> anyhow::Result<PathBuf> {
    // Not shared between users: what another one made can't be read.
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let home = std::env::temp_dir().join(format!("relay-testkit-{FORMAT}-{}", name_of(&target)));
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    let lock = File::create(home.join("lock"))?;
    lock.lock().context("waiting for another test that makes the cluster")?;
    let complete = home.join("complete");
    let made = home.join("made");
    if !complete.exists() {
        let _absent = fs::remove_dir_all(&made);
        let servers = Servers::start(&crate::config(&made).only(&[ServerKind::Postgres]))
            .context("making the cluster that tests copy")?;
        servers.stop();
        File::create(&complete)?;
    }
    Ok(made)
}

/// A name for the checkout, so that two of them don't share a template.
fn name_of(path: &Path) -> String {
    path.components()
        .filter_map(|part| part.as_os_str().to_str())
        .filter(|part| *part != "/")
        .collect::<Vec<_>>()
        .join("-")
}
