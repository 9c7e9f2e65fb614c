//! Programs that others wrote, for checks by independent hands: packages from PyPI in an environment of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter with these packages, in a new virtual environment at `dir`; the programs of the packages lie beside
/// it.
pub async fn python(dir: PathBuf, packages: &'static [&'static str]) -> anyhow::Result<PathBuf> {
    tokio::task::spawn_blocking(move || {
        run(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
        let python = dir.join("bin/python");
        run(Command::new(&python).args(["-m", "pip", "install", "-q", "--disable-pip-version-check"]).args(packages))?;
        Ok(python)
    })
    .await?
}

/// Runs a program to its end; what it printed, or an error with all that it said.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let done = command.output()?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    anyhow::ensure!(done.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&done.stderr));
    Ok(text)
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
