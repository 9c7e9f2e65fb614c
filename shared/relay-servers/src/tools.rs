//! Finds the servers' programs: explicit directories first (`.tools`), then PATH, then where Debian hides them.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::ServersError;

/// Where Debian and Ubuntu put each major version of PostgreSQL.
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";
/// Searched besides PATH: a service manager or cron starts programs with less on it.
const USUAL_DIRS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// A program in one of `dirs`, on PATH or in the usual directories.
pub(crate) fn find(program: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter()
        .cloned()
        .chain(path_dirs())
        .chain(USUAL_DIRS.map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
        .and_then(|path| path.canonicalize_dir())
}

/// The directory that has both `initdb` and `postgres`; the highest version where there are several.
pub(crate) fn postgres_bin(dirs: &[PathBuf]) -> Result<PathBuf, ServersError> {
    let complete = |dir: &PathBuf| is_executable(&dir.join("initdb")) && is_executable(&dir.join("postgres"));
    if let Some(found) = dirs.iter().cloned().chain(path_dirs()).find(complete) {
        return Ok(found);
    }
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(DEBIAN_POSTGRES)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| complete(dir))
        .collect();
    versions.sort();
    versions.pop().map(|(_, dir)| dir).ok_or_else(|| ServersError::MissingProgram {
        program: "PostgreSQL (initdb, postgres)",
        searched: searched(dirs, &format!("{DEBIAN_POSTGRES}/*/bin")),
        hint: "Install Debian's package `postgresql` (`make up` does, without its cluster), or give --database-url",
    })
}

/// Text for an error: where a program was looked for.
pub(crate) fn searched(dirs: &[PathBuf], also: &str) -> String {
    let mut places: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    places.push("PATH".to_owned());
    if !also.is_empty() {
        places.push(also.to_owned());
    }
    places.join(", ")
}

#[expect(clippy::disallowed_methods, reason = "PATH is the operating system's search path, not a setting of ours")]
fn path_dirs() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Makes the directory of a program absolute but keeps its own name: `redis-server` may be a link whose name matters.
trait CanonicalDir {
    fn canonicalize_dir(&self) -> Option<PathBuf>;
}

impl CanonicalDir for PathBuf {
    fn canonicalize_dir(&self) -> Option<PathBuf> {
        Some(self.parent()?.canonicalize().ok()?.join(self.file_name()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_directory_wins_and_links_keep_their_name() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/true", dir.path().join("sh")).unwrap();
        let found = find("sh", &[dir.path().to_owned()]).unwrap();
        assert_eq!(found, dir.path().canonicalize().unwrap().join("sh"));
        assert_ne!(find("sh", &[]).unwrap(), found);
    }

    #[test]
    fn a_file_that_cannot_be_run_is_not_a_program() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("no-such-program"), "").unwrap();
        assert_eq!(find("no-such-program", &[dir.path().to_owned()]), None);
    }
}
