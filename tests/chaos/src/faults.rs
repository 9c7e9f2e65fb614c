//! The faults there are: their names, and what each may cost by the words of the ledger.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use relay_servers::ServerKind;

/// The programs of ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Takes events in.
    Ingest,
    /// Matches, fans out, schedules.
    Dispatcher,
    /// Sends.
    Deliverer,
    /// Keeps dead letters.
    DlqManager,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ingest, Self::Dispatcher, Self::Deliverer, Self::DlqManager];

    /// Its binary.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Dispatcher => "dispatcher",
            Self::Deliverer => "deliverer",
            Self::DlqManager => "dlq-manager",
        }
    }
}

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// `kill -9` of one process of a role.
    Kill(Role),
    /// `kill -9` of all processes of ours at once.
    KillAll,
    /// SIGSTOP of one process of a role for 5 to 20 s, then SIGCONT.
    Stop(Role),
    /// SIGTERM and start of every process, one after the other.
    Restart,
    /// `kill -9` and start of a server.
    Crash(ServerKind),
    /// `kill -9` of all three servers at once.
    CrashAll,
    /// Immediate shutdown of PostgreSQL, and start.
    Immediate,
    /// `pg_terminate_backend` of every session, again and again for some seconds.
    Terminate,
    /// FLUSHALL.
    Flush,
    /// The stream JOBS deleted.
    DeleteJobs,
    /// The dispatchers stand still, and the stream EVENTS takes no more bytes.
    Full,
    /// No connection to a server for a while.
    Away(ServerKind),
    /// A slow network to a server.
    Slow(ServerKind),
    /// All connections to a server reset, several times.
    Reset(ServerKind),
    /// Connections to a server that carry nothing for a while.
    Hole(ServerKind),
}

/// What the words of the ledger allow a fault to cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// No duplicate.
    Nothing,
    /// No duplicate of its own, but results wait unrecorded meanwhile: a kill then costs them all.
    Outage,
    /// What is in flight in the deliverers that it hits.
    Kill,
}

impl Fault {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let servers = ServerKind::ALL;
        let mut all: Vec<Self> = Role::ALL.into_iter().flat_map(|r| [Self::Kill(r), Self::Stop(r)]).collect();
        all.extend([Self::KillAll, Self::Restart, Self::CrashAll, Self::Immediate, Self::Terminate]);
        all.extend([Self::Flush, Self::DeleteJobs, Self::Full]);
        all.extend(
            servers
                .into_iter()
                .flat_map(|s| [Self::Crash(s), Self::Away(s), Self::Slow(s), Self::Reset(s), Self::Hole(s)]),
        );
        all
    }

    /// Those that a list such as `all`, `kill-deliverer,postgres` or `hole` names: each item is a name or a word of one.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, String> {
        let mut chosen = Vec::new();
        for item in list.split(',').map(str::trim).filter(|i| !i.is_empty() && *i != "none") {
            let fits = |fault: &Self| {
                let name = fault.to_string();
                item == "all" || name == item || name.split('-').any(|word| word == item)
            };
            let found: Vec<Self> = Self::all().into_iter().filter(fits).collect();
            if found.is_empty() {
                let names: Vec<String> = Self::all().iter().map(Self::to_string).collect();
                return Err(format!("no fault is called {item}; there are all, none, {}", names.join(", ")));
            }
            chosen.extend(found.into_iter().filter(|f| !chosen.contains(f)).collect::<Vec<_>>());
        }
        Ok(chosen)
    }

    /// Whether it is done to processes of ours, not to servers and networks.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Kill(_) | Self::KillAll | Self::Stop(_) | Self::Restart)
    }

    /// What it may cost when it lasted so long.
    pub fn cost(self, lasted: Duration) -> Cost {
        let long = lasted >= Duration::from_secs(5);
        match self {
            Self::Kill(Role::Deliverer) => Cost::Kill,
            Self::Stop(Role::Deliverer) if long => Cost::Kill,
            Self::KillAll | Self::CrashAll | Self::Immediate | Self::DeleteJobs => Cost::Kill,
            Self::Crash(ServerKind::Nats | ServerKind::Postgres) => Cost::Kill,
            Self::Hole(ServerKind::Nats | ServerKind::Postgres) if long => Cost::Kill,
            Self::Terminate
            | Self::Away(ServerKind::Nats | ServerKind::Postgres)
            | Self::Slow(ServerKind::Nats | ServerKind::Postgres)
            | Self::Reset(ServerKind::Nats | ServerKind::Postgres)
            | Self::Hole(ServerKind::Nats | ServerKind::Postgres) => Cost::Outage,
            _ => Cost::Nothing,
        }
    }
}

fn server(kind: ServerKind) -> &'static str {
    match kind {
        ServerKind::Postgres => "postgres",
        ServerKind::Redis => "redis",
        ServerKind::Nats => "nats",
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(Role::DlqManager) => write!(f, "kill-dlq"),
            Self::Stop(Role::DlqManager) => write!(f, "stop-dlq"),
            Self::Kill(role) => write!(f, "kill-{}", role.binary()),
            Self::KillAll => write!(f, "kill-everything"),
            Self::Stop(role) => write!(f, "stop-{}", role.binary()),
            Self::Restart => write!(f, "restart"),
            Self::Crash(kind) => write!(f, "{}-crash", server(*kind)),
            Self::CrashAll => write!(f, "servers-crash"),
            Self::Immediate => write!(f, "postgres-immediate"),
            Self::Terminate => write!(f, "postgres-terminate"),
            Self::Flush => write!(f, "redis-flush"),
            Self::DeleteJobs => write!(f, "jobs-delete"),
            Self::Full => write!(f, "events-full"),
            Self::Away(kind) => write!(f, "{}-away", server(*kind)),
            Self::Slow(kind) => write!(f, "{}-slow", server(*kind)),
            Self::Reset(kind) => write!(f, "{}-reset", server(*kind)),
            Self::Hole(kind) => write!(f, "{}-hole", server(*kind)),
        }
    }
}

/// A fault that was done.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which.
    pub fault: Fault,
    /// When it began, counted from the start of the run.
    pub from: Duration,
    /// When it was over.
    pub to: Duration,
    /// What the words allow it.
    pub cost: Cost,
    /// Requests that were in flight at the deliverers that it hit, when it began, and results that they had not
    /// recorded.
    pub in_flight: u64,
    /// The ports from which the one deliverer sent that it hit; `None` = it hit all.
    pub ports: Option<HashSet<u16>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_words_choose_faults() {
        let names = |list: &str| Fault::parse_list(list).map(|l| l.iter().map(Fault::to_string).collect::<Vec<_>>());
        assert_eq!(names("kill-deliverer,restart").unwrap(), ["kill-deliverer", "restart"]);
        assert_eq!(names("hole").unwrap(), ["postgres-hole", "redis-hole", "nats-hole"]);
        assert_eq!(names("none").unwrap(), Vec::<String>::new());
        assert_eq!(Fault::parse_list("all").unwrap(), Fault::all());
        assert!(names("kil").unwrap_err().contains("kill-ingest"));
    }
}
