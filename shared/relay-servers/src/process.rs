//! Starts, watches and ends one child process.
//!
//! A child gets the kernel's parent-death signal (`setpriv --pdeathsig`), so that a `kill -9` of us leaves no orphan. The
//! signal fires when the *thread* that spawned the child ends, so all children are spawned by one thread that lives as
//! long as the servers do. Each child has a process group of its own: Ctrl-C in a terminal reaches us alone, and the
//! services can finish while their servers still run.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::ServersError;
use crate::{ServerKind, tools};

/// How often a child's end is looked for.
const POLL: Duration = Duration::from_millis(10);
/// A log longer than this is put aside at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How much of a log goes into an error.
const TAIL_LINES: usize = 12;

/// The signals that servers are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Orderly end.
    Terminate,
    /// PostgreSQL's fast shutdown.
    Interrupt,
    /// PostgreSQL's immediate shutdown: it recovers at the next start (tests).
    Quit,
    /// The end without a word (tests).
    Kill,
    /// Read the configuration again.
    Reload,
    /// Freeze (tests).
    Stop,
    /// Go on after [`Signal::Stop`].
    Continue,
}

impl Signal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
            Self::Kill => "KILL",
            Self::Reload => "HUP",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIG{}", self.name())
    }
}

/// Sends a signal to any process; `false` when there is none. By the shell's own `kill`: the system call needs `unsafe`.
pub(crate) fn send(pid: u32, signal: Signal) -> bool {
    Command::new("/bin/sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal.name(), &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// The thread that spawns all children of one [`crate::Servers`]; it ends when this is dropped.
pub(crate) struct Spawner {
    orders: mpsc::Sender<Order>,
}

impl Spawner {
    pub(crate) fn start() -> Result<Self, ServersError> {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("server-spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in queue {
                    // A caller that is gone leaves the child to its parent-death signal.
                    let _gone = answer.send(command.spawn());
                }
            })
            .map_err(ServersError::io("start", Path::new("the spawning thread")))?;
        Ok(Self { orders })
    }

    fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, result) = mpsc::channel();
        self.orders.send((command, answer)).map_err(|_closed| io::Error::other("the spawning thread is gone"))?;
        result.recv().map_err(|_closed| io::Error::other("the spawning thread is gone"))?
    }
}

/// What a child is started from.
pub(crate) struct Recipe {
    pub(crate) kind: ServerKind,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// User that it runs as (needs root); `None` = ours.
    pub(crate) user: Option<String>,
    /// What ends it in an orderly way, also when we die.
    pub(crate) end: Signal,
    pub(crate) log: PathBuf,
    pub(crate) pid_file: PathBuf,
}

/// The start of a command that changes the user, sets the parent-death signal, or both.
pub(crate) fn setpriv(user: Option<&str>, death: Option<Signal>) -> Result<Command, ServersError> {
    let program = tools::find("setpriv", &[]).ok_or_else(|| ServersError::MissingProgram {
        program: "setpriv",
        searched: tools::searched(&[], ""),
        hint: "It belongs to Debian's package `util-linux`",
    })?;
    let mut command = Command::new(program);
    if let Some(user) = user {
        command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--init-groups");
    }
    if let Some(signal) = death {
        command.args(["--pdeathsig", signal.name()]);
    }
    command.arg("--");
    Ok(command)
}

/// A running child.
pub(crate) struct Process {
    child: Child,
    kind: ServerKind,
    log: PathBuf,
    pid_file: PathBuf,
    log_start: u64,
}

impl Process {
    pub(crate) fn spawn(recipe: &Recipe, spawner: &Spawner) -> Result<Self, ServersError> {
        rotate(&recipe.log);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&recipe.log)
            .map_err(ServersError::io("write", &recipe.log))?;
        let log_start = log.metadata().map_or(0, |meta| meta.len());
        let errors = log.try_clone().map_err(ServersError::io("write", &recipe.log))?;
        let mut command = setpriv(recipe.user.as_deref(), Some(recipe.end))?;
        command
            .arg(&recipe.program)
            .args(&recipe.args)
            .envs(recipe.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let child = spawner.spawn(command).map_err(ServersError::io("start", &recipe.program))?;
        let process =
            Self { child, kind: recipe.kind, log: recipe.log.clone(), pid_file: recipe.pid_file.clone(), log_start };
        fs::write(&recipe.pid_file, process.pid().to_string()).map_err(ServersError::io("write", &recipe.pid_file))?;
        Ok(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, when it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until `probe` is content, the process ends, or the time is up.
    pub(crate) fn wait_ready(
        &mut self,
        limit: Duration,
        probe: impl Fn() -> Result<(), String>,
    ) -> Result<(), ServersError> {
        let started = Instant::now();
        loop {
            // The process is looked at after the probe too: a stranger who answers on the port makes no dead child ready.
            let answer = if self.ended().is_none() { probe() } else { Ok(()) };
            if let Some(status) = self.ended() {
                return Err(ServersError::Ended {
                    kind: self.kind,
                    status: status.to_string(),
                    log: self.log.clone(),
                    tail: tail(&self.log, self.log_start),
                });
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(why) if started.elapsed() >= limit => {
                    return Err(ServersError::NotReady {
                        kind: self.kind,
                        waited: limit,
                        why,
                        log: self.log.clone(),
                        tail: tail(&self.log, self.log_start),
                    });
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> bool {
        send(self.pid(), signal)
    }

    /// Sends `signal`, waits at most `limit` for the end, then kills. Removes the pid file.
    pub(crate) fn end(&mut self, signal: Signal, limit: Duration) -> ExitStatus {
        if self.ended().is_none() && signal != Signal::Kill {
            self.signal(signal);
            let started = Instant::now();
            while self.ended().is_none() && started.elapsed() < limit {
                thread::sleep(POLL);
            }
        }
        if self.ended().is_none() {
            if signal != Signal::Kill {
                tracing::warn!(server = %self.kind, "did not end in time and was killed");
            }
            // Fails only when it has ended meanwhile, which is what is wanted.
            let _ended = self.child.kill();
        }
        let status = self.child.wait().expect("it is our child and was not waited for");
        let _absent = fs::remove_file(&self.pid_file);
        status
    }
}

fn rotate(log: &Path) {
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        // When it can't be put aside it just grows on.
        let _kept = fs::rename(log, log.with_extension("log.1"));
    }
}

/// The last lines that were written since `start`.
fn tail(log: &Path, start: u64) -> String {
    let text = fs::read(log).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or(0).min(text.len());
    last_lines(&String::from_utf8_lossy(&text[start..]))
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(dir: &Path, script: &str) -> Recipe {
        Recipe {
            kind: ServerKind::Redis,
            program: PathBuf::from("/bin/sh"),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec![("GREETING".to_owned(), "hello".to_owned())],
            user: None,
            end: Signal::Terminate,
            log: dir.join("log"),
            pid_file: dir.join("pid"),
        }
    }

    #[test]
    fn a_child_that_ends_at_once_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let spawner = Spawner::start().unwrap();
        fs::write(dir.path().join("log"), "an old line\n").unwrap();
        let recipe = recipe(dir.path(), "echo $GREETING; echo no disk >&2; exit 3");
        let mut process = Process::spawn(&recipe, &spawner).unwrap();
        let error = process.wait_ready(Duration::from_secs(60), || Err("not yet".to_owned())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("hello\nno disk"), "{text}");
        assert!(!text.contains("an old line"), "{text}");
    }

    #[test]
    fn a_child_lives_on_when_the_thread_that_asked_for_it_ends_and_ends_on_its_signal() {
        let dir = tempfile::tempdir().unwrap();
        let spawner = Spawner::start().unwrap();
        let recipe = recipe(dir.path(), "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done");
        let mut process =
            thread::scope(|scope| scope.spawn(|| Process::spawn(&recipe, &spawner).unwrap()).join().unwrap());
        let log = dir.path().join("log");
        process
            .wait_ready(Duration::from_secs(60), || match fs::read_to_string(&log) {
                Ok(text) if text.contains("ready") => Ok(()),
                _ => Err("silent".to_owned()),
            })
            .unwrap();
        assert!(process.ended().is_none());
        assert_eq!(fs::read_to_string(dir.path().join("pid")).unwrap(), process.pid().to_string());
        assert_eq!(process.end(Signal::Terminate, Duration::from_secs(60)).code(), Some(7));
        assert!(!dir.path().join("pid").exists());
    }

    #[test]
    fn the_death_of_the_spawner_ends_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let spawner = Spawner::start().unwrap();
        let mut process = Process::spawn(&recipe(dir.path(), "exec sleep 600"), &spawner).unwrap();
        // Until setpriv has become `sleep` the signal isn't armed.
        let cmdline = PathBuf::from(format!("/proc/{}/cmdline", process.pid()));
        process
            .wait_ready(Duration::from_secs(60), || match fs::read(&cmdline) {
                Ok(text) if text.starts_with(b"sleep") => Ok(()),
                _ => Err("setpriv".to_owned()),
            })
            .unwrap();
        drop(spawner);
        let status = process.child.wait().unwrap();
        assert!(!status.success());
    }
}
