//! The private servers, for real: they start, keep data and port over a kill, end with their parent, and one data
//! directory has one owner.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use relay_servers::{Memory, ServerKind, Servers, ServersConfig, ServersError, Signal};

fn config(dir: &Path) -> ServersConfig {
    ServersConfig {
        tools_dirs: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")],
        memory: Memory::Small,
        ..ServersConfig::new(dir)
    }
}

fn sql(url: &str, statement: &str) -> String {
    let output = Command::new("psql").args([url, "-XtAc", statement]).output().expect("psql belongs to PostgreSQL");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn all_three_start_and_keep_port_and_data_over_a_kill_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut servers = Servers::start(&config(dir.path())).unwrap();
    let url = servers.database_url().unwrap();
    assert_eq!(sql(&url, "show fsync"), "on");
    assert_eq!(sql(&url, "show synchronous_commit"), "on");
    assert_eq!(sql(&url, "show wal_compression"), "lz4");
    assert_eq!(sql(&url, "select rolsuper from pg_roles where rolname = current_user"), "f");
    sql(&url, "create table kept (n int); insert into kept values (42)");
    for kind in ServerKind::ALL {
        let port = servers.port(kind);
        servers.stop_server(kind, Signal::Kill).unwrap();
        assert!(!servers.is_running(kind));
        assert!(servers.check(kind).is_err());
        servers.start_server(kind).unwrap();
        assert_eq!(servers.port(kind), port);
        servers.check(kind).unwrap();
    }
    assert_eq!(sql(&url, "select n from kept"), "42");

    let second = Servers::start(&config(dir.path())).unwrap_err();
    assert!(matches!(&second, ServersError::InUse { holder, .. } if *holder == Some(std::process::id())), "{second}");
    servers.stop();

    // Lost passwords are made anew; the data stays.
    fs::remove_file(dir.path().join("credentials.json")).unwrap();
    let servers = Servers::start(&config(dir.path()).only(&[ServerKind::Postgres])).unwrap();
    assert_eq!(sql(&servers.database_url().unwrap(), "select n from kept"), "42");
    assert_eq!(servers.redis_url(), None);
    assert_eq!(servers.pid(ServerKind::Nats), None);
}

#[test]
fn no_password_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let servers = Servers::start(&config(dir.path()).only(&[ServerKind::Postgres])).unwrap();
    let port = servers.port(ServerKind::Postgres).unwrap();
    for user in ["postgres", "relay"] {
        let output = Command::new("psql")
            .args(["-wX", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", user, "-c", "select 1", "webhook_relay"])
            .output()
            .expect("psql belongs to PostgreSQL");
        assert!(!output.status.success(), "{user} came in without a password");
    }
}

#[test]
fn a_missing_program_is_named_with_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let config = ServersConfig { tools_dirs: Vec::new(), ..config(dir.path()) }.only(&[ServerKind::Nats]);
    // On a machine that has nats-server on its PATH there is nothing to see here.
    if let Err(error) = Servers::start(&config) {
        assert!(error.to_string().contains("make build"), "{error}");
    }
}

#[test]
fn a_taken_port_is_reported_with_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(dir.path()).only(&[ServerKind::Redis]);
    config.redis_port = Some(taken.local_addr().unwrap().port());
    let error = Servers::start(&config).unwrap_err().to_string();
    assert!(error.contains("Redis ended at once") && error.contains("redis.log"), "{error}");
}

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "run by `a_killed_parent_leaves_nothing_behind` as a process of its own"]
fn parent_to_be_killed() {
    let Some(dir) = fs::read_link("/proc/self/fd/0").ok().and_then(|file| file.parent().map(Path::to_owned)) else {
        return;
    };
    let servers = Servers::start(&config(&dir)).unwrap();
    let pids = ServerKind::ALL.map(|kind| servers.pid(kind).unwrap().to_string());
    println!("\npids {}", pids.join(" "));
    loop {
        thread::park();
    }
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn a_killed_parent_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // The child learns its data directory from the place of its standard input.
    let input = dir.path().join("input");
    fs::write(&input, "").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_to_be_killed", "--ignored", "--nocapture"])
        .stdin(fs::File::open(&input).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = KilledOnDrop(child);
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let pids: Vec<PathBuf> = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("pids ").map(|pids| pids.split(' ').map(proc_dir).collect()))
        .expect("the child starts its servers");
    assert_eq!(pids.len(), 3);
    child.0.kill().unwrap();
    child.0.wait().unwrap();

    // The next start takes over at once, whether the old ones are gone already or not.
    let servers = Servers::start(&config(dir.path())).unwrap();
    for kind in ServerKind::ALL {
        servers.check(kind).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while pids.iter().any(|pid| is_alive(pid)) {
        assert!(Instant::now() < deadline, "a server outlived its parent");
        thread::sleep(Duration::from_millis(20));
    }
}

fn proc_dir(pid: &str) -> PathBuf {
    Path::new("/proc").join(pid)
}

/// A zombie that nobody has waited for yet is not alive.
fn is_alive(proc_dir: &Path) -> bool {
    fs::read(proc_dir.join("cmdline")).is_ok_and(|cmdline| !cmdline.is_empty())
}
