//! A TCP proxy of a test's own between services and one of their servers: cut, slow or silent, whatever the server does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What it does with connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Open,
    /// Ends them.
    Cut,
    /// Forwards after a while.
    Slow(Duration),
    /// Takes them and their bytes, and forwards nothing until it is over: what a network does that drops packets.
    Hole,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Connections of an older number end.
    number: u64,
}

/// Forwards connections from a port of its own until dropped.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To a server on this address.
    pub async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State { mode: Mode::Open, number: 0 });
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let watched = watched.clone();
                let number = watched.borrow().number;
                // Dropping a connection that was just accepted is what a client sees of a server that went away.
                if watched.borrow().mode != Mode::Cut {
                    tokio::spawn(forward(client, to, watched, number));
                }
            }
        });
        Ok(Self { address, state, task })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and each new one at once.
    pub fn cut(&self) {
        self.set(Mode::Cut);
    }

    /// Forwards again, also what came into a black hole.
    pub fn restore(&self) {
        self.set(Mode::Open);
    }

    /// Forwards each piece of data after this time.
    pub fn slow(&self, by: Duration) {
        self.set(Mode::Slow(by));
    }

    /// Forwards nothing, and ends nothing.
    pub fn black_hole(&self) {
        self.set(Mode::Hole);
    }

    /// Ends the connections of now; new ones are forwarded.
    pub fn reset(&self) {
        self.state.send_modify(|s| s.number += 1);
    }

    fn set(&self, mode: Mode) {
        self.state.send_modify(|s| s.mode = mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, to: SocketAddr, state: watch::Receiver<State>, number: u64) {
    let mut over = state.clone();
    let mut holes = state.clone();
    let work = async {
        // Nobody hears of a connection that begins in a black hole either.
        if holes.wait_for(|s| s.mode != Mode::Hole).await.is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect(to).await else { return };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        tokio::join!(pump(client_read, server_write, state.clone()), pump(server_read, client_write, state));
    };
    tokio::select! {
        () = work => {}
        _ = over.wait_for(|s| s.mode == Mode::Cut || s.number != number) => {}
    }
}

/// How a connection ends is the business of its two ends.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mode = match state.wait_for(|s| s.mode != Mode::Hole).await {
            Ok(state) => state.mode,
            Err(_) => return,
        };
        if let Mode::Slow(by) = mode {
            tokio::time::sleep(by).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // An orderly end is as lost in a black hole as data are.
    if state.wait_for(|s| s.mode != Mode::Hole).await.is_ok() {
        let _ = to.shutdown().await;
    }
}
