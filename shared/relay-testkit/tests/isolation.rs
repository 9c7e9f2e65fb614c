//! Servers of two tests share nothing, and are gone with the value that holds them.

use relay_testkit::{ServerKind, TestServers};

#[test]
fn two_sets_have_ports_of_their_own_and_end_when_dropped() {
    let first = TestServers::start(&ServerKind::ALL).unwrap();
    let second = TestServers::start(&ServerKind::ALL).unwrap();
    for kind in ServerKind::ALL {
        first.check(kind).unwrap();
        second.check(kind).unwrap();
        assert_ne!(first.port(kind), second.port(kind));
    }
    assert_ne!(first.database(), second.database());
    assert_ne!(first.redis(), second.redis());
    assert_ne!(first.nats(), second.nats());
    let dir = first.data_dir().to_owned();
    drop(first);
    assert!(!dir.exists());
    second.check(ServerKind::Postgres).unwrap();
}

#[test]
fn a_killed_server_comes_back_on_its_port() {
    let mut servers = TestServers::start(&[ServerKind::Nats]).unwrap();
    let (url, pid) = (servers.nats(), servers.pid(ServerKind::Nats));
    servers.kill_and_restart(ServerKind::Nats).unwrap();
    servers.check(ServerKind::Nats).unwrap();
    assert_eq!(servers.nats(), url);
    assert_ne!(servers.pid(ServerKind::Nats), pid);
}
