//! Ends servers that an earlier run left behind: a killed `up` takes its servers along by the parent-death signal, but a
//! PostgreSQL may still be in its shutdown, and a stopped or traced child does not react at once.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::ServersError;
use crate::process::{Signal, send};

/// How long a left-over server may take for an orderly end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take after a kill.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// Ends the process named in `pid_file`, if it is alive and `mark` (a path below our data directory) stands in its command
/// line; a pid that meanwhile belongs to somebody else is left alone. Says whether there was one.
pub(crate) fn end(pid_file: &Path, mark: &Path, signal: Signal) -> Result<bool, ServersError> {
    let Some(pid) = pid_of(pid_file) else { return Ok(false) };
    let ours = is_ours(pid, mark);
    if ours {
        send(pid, signal);
        if !gone(pid, mark, PATIENCE) {
            send(pid, Signal::Kill);
            if !gone(pid, mark, KILL_PATIENCE) {
                return Err(ServersError::Command {
                    what: "ending the server of an earlier run",
                    output: format!("process {pid} does not end"),
                });
            }
        }
    }
    let _absent = fs::remove_file(pid_file);
    Ok(ours)
}

/// The process named in `pid_file`, if it is alive and `mark` stands in its command line.
pub(crate) fn running(pid_file: &Path, mark: &Path) -> Option<u32> {
    pid_of(pid_file).filter(|pid| is_ours(*pid, mark))
}

fn pid_of(pid_file: &Path) -> Option<u32> {
    fs::read_to_string(pid_file).ok()?.trim().parse().ok()
}

fn gone(pid: u32, mark: &Path, limit: Duration) -> bool {
    let started = Instant::now();
    while is_ours(pid, mark) {
        if started.elapsed() >= limit {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

/// A zombie has an empty command line and so counts as gone.
fn is_ours(pid: u32, mark: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    String::from_utf8_lossy(&cmdline).contains(&*mark.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_a_process_with_our_mark_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let mark = dir.path().join("data");
        let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(&pid_file, stranger.id().to_string()).unwrap();
        assert!(!end(&pid_file, &mark, Signal::Terminate).unwrap());
        assert!(stranger.try_wait().unwrap().is_none(), "a stranger was ended");
        stranger.kill().unwrap();
        stranger.wait().unwrap();

        fs::write(&mark, "").unwrap();
        let mut ours = Command::new("tail").arg("-f").arg(&mark).spawn().unwrap();
        // A process that was just started has no command line for a moment.
        while !is_ours(ours.id(), &mark) {
            assert!(ours.try_wait().unwrap().is_none());
        }
        fs::write(&pid_file, ours.id().to_string()).unwrap();
        assert!(end(&pid_file, &mark, Signal::Terminate).unwrap());
        assert!(!ours.wait().unwrap().success());
        assert!(!pid_file.exists());
        assert!(!end(&pid_file, &mark, Signal::Terminate).unwrap());
    }
}
