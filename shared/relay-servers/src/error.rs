//! What can go wrong while a server is found, prepared, started or stopped; every text says what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ServerKind;

/// Why a private server isn't there.
#[derive(Debug, thiserror::Error)]
pub enum ServersError {
    /// No such program on this machine.
    #[error("{program} was not found (looked in {searched}). {hint}")]
    MissingProgram {
        /// The program's name.
        program: &'static str,
        /// Where it was looked for.
        searched: String,
        /// What to install.
        hint: &'static str,
    },
    /// Another process uses the data directory.
    #[error("{} is in use by another webhook-relay{}. End it first (`make down`), or choose another --data-dir", dir.display(), holder.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process that holds it, as it wrote into the lock file.
        holder: Option<u32>,
    },
    /// A file or a process operation failed.
    #[error("could not {what} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A preparing command (such as initdb) failed.
    #[error("{what} failed: {output}")]
    Command {
        /// What was run.
        what: &'static str,
        /// The end of what it printed.
        output: String,
    },
    /// The server ended before it was ready.
    #[error("{kind} ended at once ({status}). Its log is {}; the last lines:\n{tail}", log.display())]
    Ended {
        /// Which server.
        kind: ServerKind,
        /// Its exit status.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
    /// The server runs, but doesn't answer.
    #[error("{kind} was not ready after {} s: {why}. Its log is {}; the last lines:\n{tail}", waited.as_secs(), log.display())]
    NotReady {
        /// Which server.
        kind: ServerKind,
        /// How long it was waited for.
        waited: Duration,
        /// The last probe's answer.
        why: String,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
    /// No free port was found.
    #[error("no free port on 127.0.0.1 was found for {0}")]
    NoPort(ServerKind),
    /// The server was not asked for when these servers were started.
    #[error("{0} is not among the servers that were asked for")]
    NotManaged(ServerKind),
    /// The file with the generated passwords can't be read.
    #[error("{} is damaged ({why}). Remove it: new passwords will be made", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        why: String,
    },
    /// PostgreSQL refuses to run as root, and there is nobody else to run it.
    #[error(
        "PostgreSQL does not run as root and there is no user `postgres` on this machine. Install Debian's package `postgresql` (`make up` does), or run as another user"
    )]
    NoPostgresUser,
    /// The PostgreSQL found is too old.
    #[error("PostgreSQL {found} at {} is too old: 15 or newer is needed", path.display())]
    OldPostgres {
        /// Its major version.
        found: u32,
        /// Its program.
        path: PathBuf,
    },
}

impl ServersError {
    /// An operating-system error with what was tried on which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
