//! CPU time and memory by process, from /proc: ours, PostgreSQL, NATS, Redis, and this harness.

use std::collections::BTreeMap;

/// One tick of `utime` and `stime` in `/proc/<pid>/stat`, in microseconds (`sysconf(_SC_CLK_TCK)` is 100 on Linux).
const TICK_US: u64 = 10_000;

/// The name of our processes; as processes of their own their subcommands follow.
const OURS: &str = "ours";

/// CPU microseconds and PSS bytes by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// User and system time.
    pub cpu_us: BTreeMap<String, u64>,
    /// Proportional set size.
    pub pss_bytes: BTreeMap<String, u64>,
}

struct Process {
    pid: u32,
    parent: u32,
    name: String,
    cpu_us: u64,
}

fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name stands in parentheses and may contain blanks.
            let (name, rest) = (stat.get(stat.find('(')? + 1..stat.rfind(')')?)?, stat.get(stat.rfind(')')? + 2..)?);
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
            Some(Process {
                pid,
                parent: u32::try_from(number(1)?).ok()?,
                name: name.to_owned(),
                // With the time of children that ended (PostgreSQL's backends).
                cpu_us: (number(11)? + number(12)? + number(13)? + number(14)?) * TICK_US,
            })
        })
        .collect()
}

fn pss(pid: u32) -> u64 {
    bytes(pid, "smaps_rollup", "Pss:").unwrap_or(0)
}

/// A figure that a file of `/proc/<pid>` has in KiB behind `name`, in bytes.
fn bytes(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let kib: u64 = text.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// What a process is: a server, or one of ours with its subcommand.
fn role(process: &Process) -> String {
    match process.name.as_str() {
        n if n.starts_with("postgres") => "postgres".to_owned(),
        n if n.starts_with("nats") => "nats".to_owned(),
        n if n.starts_with("redis") => "redis".to_owned(),
        _ => {
            let line = std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            match line.split('\0').nth(1) {
                Some("up") | None => OURS.to_owned(),
                Some(service) => format!("{OURS}, {service}"),
            }
        }
    }
}

/// The processes at and below `roots`.
fn family(all: &[Process], roots: Vec<u32>) -> Vec<u32> {
    let mut members = roots;
    let mut at = 0;
    while let Some(parent) = members.get(at).copied() {
        members.extend(all.iter().filter(|p| p.parent == parent).map(|p| p.pid));
        at += 1;
    }
    members
}

/// Files that our processes at and below `roots` hold open.
pub fn open_files(roots: &[u32]) -> usize {
    let all = processes();
    let members = family(&all, roots.to_vec());
    let ours = all.iter().filter(|p| members.contains(&p.pid) && role(p).starts_with(OURS));
    ours.filter_map(|p| Some(std::fs::read_dir(format!("/proc/{}/fd", p.pid)).ok()?.count())).sum()
}

/// The most memory that each of our processes at and below `roots` had resident so far, in bytes (`VmHWM`), by role; those
/// of one role are numbered.
pub fn peaks(roots: &[u32]) -> BTreeMap<String, u64> {
    let all = processes();
    let members = family(&all, roots.to_vec());
    let mut peaks = BTreeMap::new();
    for process in all.iter().filter(|p| members.contains(&p.pid)) {
        let role = role(process);
        let Some(peak) = bytes(process.pid, "status", "VmHWM:").filter(|_| role.starts_with(OURS)) else { continue };
        let names = std::iter::once(role.clone()).chain((2..).map(|n| format!("{role} {n}")));
        let name = names.into_iter().find(|name| !peaks.contains_key(name)).unwrap_or(role);
        peaks.insert(name, peak);
    }
    peaks
}

impl Snapshot {
    /// Everything at and below `roots` by role, and this process as `harness`.
    pub fn take(roots: Vec<u32>) -> Self {
        let all = processes();
        let mut snapshot = Self::default();
        let members = family(&all, roots);
        for process in &all {
            let role = if process.pid == std::process::id() {
                "harness".to_owned()
            } else if members.contains(&process.pid) {
                role(process)
            } else {
                continue;
            };
            *snapshot.cpu_us.entry(role.clone()).or_default() += process.cpu_us;
            *snapshot.pss_bytes.entry(role).or_default() += pss(process.pid);
        }
        snapshot
    }

    /// CPU time since `before`; memory as it is now.
    pub fn since(mut self, before: &Self) -> Self {
        for (role, us) in &mut self.cpu_us {
            *us = us.saturating_sub(before.cpu_us.get(role).copied().unwrap_or(0));
        }
        self
    }
}
