//! A silent peer that accepts connections.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// A loopback listener that accepts every connection, keeps it open and never sends a byte.
///
/// The listener and its connections close when this is dropped.
#[derive(Debug)]
pub struct TcpSilence {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    closing: AtomicBool,
    accepted: AtomicUsize,
}

impl TcpSilence {
    /// Listens on a free port.
    ///
    /// # Panics
    ///
    /// If the system gives no port.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept_until_closing(&listener, &shared)
        });
        Self { address, shared, listener: Some(thread) }
    }

    /// Returns `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Returns the port that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the number of connections that it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

fn accept_until_closing(listener: &TcpListener, shared: &Shared) {
    let mut open = Vec::new();
    for stream in listener.incoming() {
        if shared.closing.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(stream) = stream {
            open.push(stream);
            shared.accepted.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for TcpSilence {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // `accept` has no other way to be woken.
        let woken = TcpStream::connect(self.address).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            let _ = listener.join();
        }
    }
}
