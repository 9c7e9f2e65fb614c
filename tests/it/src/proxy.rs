//! A TCP proxy of a test's own between services and one of their servers: cut, the server is away for them, however
//! well it is.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections from a port of its own until dropped.
pub struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To a server on this address.
    pub async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (open, gate) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut gate = gate.clone();
                // Dropping a connection that was just accepted is what a client sees of a server that went away.
                if *gate.borrow() {
                    tokio::spawn(async move {
                        tokio::select! {
                            () = forward(client, to) => {}
                            _ = gate.wait_for(|open| !open) => {}
                        }
                    });
                }
            }
        });
        Ok(Self { address, open, task })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and each new one at once.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Forwards again.
    pub fn restore(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, to: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(to).await {
        // How a connection ends is the business of its two ends.
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
