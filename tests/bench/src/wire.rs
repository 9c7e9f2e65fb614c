//! HTTP/1.1 over one connection, as much as a load generator needs: it shares the machine with what it measures, and a
//! client of a library takes as long for a request as the system takes for a third of a delivery.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::system::TENANT_HEADER;

/// The bytes of a `POST /api/v1/events` in this tenant; `None`: the default one.
pub fn post_event(tenant: Option<&str>, body: &str) -> Vec<u8> {
    let tenant = tenant.map_or(String::new(), |tenant| format!("{TENANT_HEADER}: {tenant}\r\n"));
    let fixed = "POST /api/v1/events HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n";
    format!("{fixed}{tenant}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// An answer of HTTP/1.1 as far as it counts here.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// It says when to come again (`Retry-After`).
    pub has_wait: bool,
}

/// One connection to the interface, opened again when it fails.
pub struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opened by the first request.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, buffer: Vec::with_capacity(2048) }
    }

    /// Sends one request and reads the whole answer. `request` has all its bytes, and a `Content-Length`.
    ///
    /// # Errors
    /// No answer; the next request opens the connection again.
    pub async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        let asked = self.ask_once(request).await;
        if asked.is_err() {
            self.stream = None;
        }
        asked
    }

    async fn ask_once(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                self.stream.insert(stream)
            }
        };
        stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if let Some((answer, length)) = parse(&self.buffer)?
                && self.buffer.len() >= length
            {
                return Ok(answer);
            }
            anyhow::ensure!(stream.read_buf(&mut self.buffer).await? > 0, "the connection ended");
        }
    }
}

/// The answer whose head is at the start of `bytes`, and its length with its body; `None` while the head isn't whole.
fn parse(bytes: &[u8]) -> anyhow::Result<Option<(Answer, usize)>> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    };
    let body: usize = header("content-length").context("no length")?.parse()?;
    Ok(Some((Answer { status, has_wait: header("retry-after").is_some() }, end + 4 + body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_come() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\ncontent-length: 3\r\n\r\nno!";
        for n in 0..text.len() - 3 {
            assert!(parse(&text[..n]).unwrap().is_none());
        }
        let (answer, length) = parse(text).unwrap().unwrap();
        assert_eq!((answer.status, answer.has_wait, length), (503, true, text.len()));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
