//! A TCP proxy that can lose what passes through it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

/// What the proxy does at the moment.
#[derive(Clone, Copy, Debug, Default)]
struct Mode {
    /// Bytes to the server are kept back.
    hold_requests: bool,
    /// Bytes to the client are kept back.
    hold_answers: bool,
    /// New connections are closed at once.
    refuse: bool,
    /// Counts cuts: connections made before the last one are closed.
    cuts: u64,
}

/// A proxy on a free loopback port in front of a server. It passes everything on until it is told otherwise, and ends
/// when it is dropped.
///
/// What is kept back and then [`cut`](Self::cut) is lost: that is how a test loses a request, or an acknowledgement.
#[derive(Debug)]
pub struct TcpProxy {
    port: u16,
    mode: Arc<watch::Sender<Mode>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl TcpProxy {
    /// Starts a proxy to `target` on the loopback address.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let mode = Arc::new(watch::Sender::new(Mode::default()));
        let accepting = tokio::spawn({
            let mode = Arc::clone(&mode);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if !mode.borrow().refuse {
                        tokio::spawn(connection(client, target, mode.subscribe()));
                    }
                }
            }
        });
        Self { port, mode, accepting }
    }

    /// The URL of the proxy for a NATS client.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Keeps back what the client sends, or passes it on again.
    pub fn hold_requests(&self, hold: bool) {
        self.mode.send_modify(|mode| mode.hold_requests = hold);
    }

    /// Keeps back what the server sends, or passes it on again.
    pub fn hold_answers(&self, hold: bool) {
        self.mode.send_modify(|mode| mode.hold_answers = hold);
    }

    /// Closes new connections at once, or lets them through again.
    pub fn refuse(&self, refuse: bool) {
        self.mode.send_modify(|mode| mode.refuse = refuse);
    }

    /// Closes every connection, with what is kept back in it. New ones begin with nothing kept back.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| {
            mode.cuts += 1;
            mode.hold_requests = false;
            mode.hold_answers = false;
        });
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn connection(client: TcpStream, target: u16, mut mode: watch::Receiver<Mode>) {
    let born = mode.borrow().cuts;
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = pass(client_read, server_write, mode.clone(), born, |mode| mode.hold_requests) => {}
        () = pass(server_read, client_write, mode.clone(), born, |mode| mode.hold_answers) => {}
        _ = mode.wait_for(|mode| mode.cuts != born) => {}
    }
}

async fn pass(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    born: u64,
    held: impl Fn(&Mode) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        match mode.wait_for(|mode| mode.cuts != born || !held(mode)).await {
            // What was kept back when the connection was cut must not slip through.
            Ok(mode) if mode.cuts == born => {}
            _ => return,
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
