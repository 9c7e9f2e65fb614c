//! Is a server ready? One short conversation in each server's own protocol.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// A server on loopback answers at once or is not ready.
const TIMEOUT: Duration = Duration::from_secs(2);

fn connect(port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|error| format!("{address}: {error}"))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// PostgreSQL: a start-up message (protocol 3.0) is answered by an authentication request (`R`) when connections are
/// taken, and by an error (`E`, "the database system is starting up") before.
pub(crate) fn postgres(port: u16, user: &str, database: &str) -> Result<(), String> {
    let mut stream = connect(port)?;
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for text in ["user", user, "database", database, ""] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let length = u32::try_from(body.len() + 4).expect("a start-up message is short");
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(&body);
    stream.write_all(&message).map_err(|error| error.to_string())?;
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
    if answer[0] == b'R' {
        return Ok(());
    }
    let mut rest = vec![0; 512];
    let read = stream.read(&mut rest).unwrap_or(0);
    Err(String::from_utf8_lossy(&rest[..read]).chars().filter(|c| !c.is_control()).collect())
}

/// Redis: PING is answered by PONG once the data is loaded.
pub(crate) fn redis(port: u16, password: &str) -> Result<(), String> {
    let mut stream = connect(port)?;
    stream.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    let mut part = [0; 256];
    while !answer.ends_with(b"+PONG\r\n") {
        let read = stream.read(&mut part).map_err(|error| error.to_string())?;
        answer.extend_from_slice(&part[..read]);
        if read == 0 || answer.contains(&b'-') {
            return Err(String::from_utf8_lossy(&answer).trim().to_owned());
        }
    }
    Ok(())
}

/// nats-server: `/healthz` of the monitoring port is 200 once JetStream has its streams.
pub(crate) fn nats(monitor_port: u16) -> Result<(), String> {
    let mut stream = connect(monitor_port)?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    if status == "200" {
        Ok(())
    } else {
        Err(format!("/healthz answers {}", answer.lines().last().unwrap_or_default()))
    }
}
