//! A TCP proxy that can lose, delay and silence the bytes that pass through it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

/// Maximum number of bytes that the proxy holds for each direction of a connection. The rest stays
/// with the system and the sender.
const KEPT: usize = 256 * 1024;

/// Maximum number of connections of the proxy. Others wait to be accepted.
const CONNECTIONS: usize = 1024;

/// The present behaviour of the proxy.
#[derive(Clone, Copy, Debug, Default)]
struct Mode {
    /// The port behind the proxy. While it is 0, connections wait.
    target: u16,
    requests: Way,
    answers: Way,
    /// True if nothing gets through, neither bytes nor the end of a connection.
    stalled: bool,
    /// True if new connections are closed at once.
    refuse: bool,
    /// Number of cuts. Connections made before the last one are closed.
    cuts: u64,
}

/// One direction: from the client, or from the server.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// True if bytes are held back.
    hold: bool,
    /// Delay of every byte.
    delay: Duration,
    /// Number of half closes. This direction has ended in connections made before the last one.
    ends: u64,
}

/// A proxy on a free loopback port in front of a server. It passes everything on by default, and
/// ends when it is dropped.
///
/// A [`cut`](Self::cut) loses all bytes that are held back. This is how a test loses a request, or
/// an acknowledgement.
///
/// In every mode it holds at most 256 KiB for each direction of a connection, and 1,024
/// connections.
#[derive(Debug)]
pub struct TcpProxy {
    port: u16,
    mode: Arc<watch::Sender<Mode>>,
    free: Arc<Semaphore>,
    accepting: tokio::task::JoinHandle<()>,
}

impl TcpProxy {
    /// Starts a proxy to `target` on the loopback address.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let mode = Arc::new(watch::Sender::new(Mode { target, ..Mode::default() }));
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&mode), Arc::clone(&free)));
        Self { port, mode, free, accepting }
    }

    /// Starts a proxy whose connections wait until it is [aimed](Self::aim), for a server whose
    /// port is not known yet.
    pub(crate) async fn unaimed() -> Self {
        Self::start(0).await
    }

    /// Directs new connections to this port.
    pub(crate) fn aim(&self, target: u16) {
        self.mode.send_modify(|mode| mode.target = target);
    }

    /// Returns the URL of the proxy for a NATS client.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns the port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the present number of connections.
    pub fn connections(&self) -> usize {
        CONNECTIONS - self.free.available_permits()
    }

    /// Holds back the bytes of the client, or passes them on again.
    pub fn hold_requests(&self, hold: bool) {
        self.mode.send_modify(|mode| mode.requests.hold = hold);
    }

    /// Holds back the bytes of the server, or passes them on again.
    pub fn hold_answers(&self, hold: bool) {
        self.mode.send_modify(|mode| mode.answers.hold = hold);
    }

    /// Delays the later bytes of the client, in their order. Zero ends the delay.
    ///
    /// At most 256 KiB of a connection are in transit at a time.
    pub fn delay_requests(&self, delay: Duration) {
        self.mode.send_modify(|mode| mode.requests.delay = delay);
    }

    /// Does the same for the bytes of the server.
    pub fn delay_answers(&self, delay: Duration) {
        self.mode.send_modify(|mode| mode.answers.delay = delay);
    }

    /// Delays both directions, so that a round trip takes twice as much longer.
    pub fn delay(&self, delay: Duration) {
        self.delay_requests(delay);
        self.delay_answers(delay);
    }

    /// Lets nothing through any more, as a network that loses every packet. Connections stay open,
    /// new ones are accepted, and neither side learns when the other closes or dies.
    ///
    /// It continues after a [`cut`](Self::cut), until [`flow`](Self::flow).
    pub fn stall(&self) {
        self.mode.send_modify(|mode| mode.stalled = true);
    }

    /// Ends a [`stall`](Self::stall). Bytes that were sent meanwhile arrive now, as retransmitted
    /// packets do.
    pub fn flow(&self) {
        self.mode.send_modify(|mode| mode.stalled = false);
    }

    /// Ends the direction to the server in every connection. The server reads the end, and further
    /// bytes of the client are lost. Answers continue as long as the server likes.
    pub fn half_close_requests(&self) {
        self.mode.send_modify(|mode| mode.requests.ends += 1);
    }

    /// Ends the direction to the client in every connection. The client reads the end, and further
    /// bytes of the server are lost. Requests continue as long as the client likes.
    pub fn half_close_answers(&self) {
        self.mode.send_modify(|mode| mode.answers.ends += 1);
    }

    /// Closes new connections at once, or accepts them again.
    pub fn refuse(&self, refuse: bool) {
        self.mode.send_modify(|mode| mode.refuse = refuse);
    }

    /// Closes every connection, and loses the bytes that are held back in it. New ones start with
    /// nothing held back.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| {
            mode.cuts += 1;
            mode.requests.hold = false;
            mode.answers.hold = false;
        });
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, mode: Arc<watch::Sender<Mode>>, free: Arc<Semaphore>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // The cause is this connection or a lack of descriptors. Neither lasts.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let born = *mode.borrow();
        if born.refuse {
            continue;
        }
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let mode = mode.subscribe();
        tokio::spawn(async move {
            connection(client, born, mode).await;
            drop(permit);
        });
    }
}

/// Serves a connection. `born` is the mode of the proxy at its start.
async fn connection(client: TcpStream, born: Mode, mode: watch::Receiver<Mode>) {
    let mut cut = mode.clone();
    tokio::select! {
        () = serve(client, born, mode) => {}
        _ = cut.wait_for(|mode| mode.cuts != born.cuts) => {}
    }
}

async fn serve(client: TcpStream, born: Mode, mut mode: watch::Receiver<Mode>) {
    let target = match mode.wait_for(|mode| !mode.stalled && mode.target != 0).await {
        Ok(mode) => mode.target,
        Err(_) => return,
    };
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = pass(client_read, server_write, born, mode.clone(), |mode| mode.requests) => {}
        () = pass(server_read, client_write, born, mode, |mode| mode.answers) => {}
    }
}

/// A piece of bytes, and the time at which the other side must receive it. No bytes are the end.
struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
}

impl Chunk {
    /// Returns its weight in the limit on held bytes. A small piece costs more than its bytes.
    fn weight(&self) -> usize {
        self.bytes.len().max(256)
    }
}

/// Passes one direction on, until it has ended.
async fn pass(
    from: tcp::OwnedReadHalf,
    to: tcp::OwnedWriteHalf,
    born: Mode,
    mode: watch::Receiver<Mode>,
    way: impl Fn(&Mode) -> Way + Copy,
) {
    let room = Semaphore::new(KEPT);
    // The semaphore bounds the queue.
    let (queue, queued) = mpsc::unbounded_channel();
    let current = mode.clone();
    let reading = read(from, queue, &room, || way(&current.borrow()).delay);
    let writing = write(queued, to, &room, born, mode, way);
    tokio::select! {
        () = writing => {}
        // The reader has put the end into the queue, which is written last.
        () = async { reading.await; std::future::pending().await } => {}
    }
}

async fn read(
    mut from: tcp::OwnedReadHalf,
    queue: mpsc::UnboundedSender<Chunk>,
    room: &Semaphore,
    delay: impl Fn() -> Duration,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let chunk = Chunk { due: Instant::now() + delay(), bytes: buffer[..read].to_vec() };
        let weight = u32::try_from(chunk.weight()).expect("a small buffer");
        // Neither is ever closed while this runs.
        room.acquire_many(weight).await.expect("an open semaphore").forget();
        if queue.send(chunk).is_err() || read == 0 {
            return;
        }
    }
}

async fn write(
    mut queued: mpsc::UnboundedReceiver<Chunk>,
    mut to: tcp::OwnedWriteHalf,
    room: &Semaphore,
    born: Mode,
    mut mode: watch::Receiver<Mode>,
    way: impl Fn(&Mode) -> Way + Copy,
) {
    let mut end = mode.clone();
    tokio::select! {
        () = deliver(&mut queued, &mut to, room, born, &mut mode, way) => return,
        _ = end.wait_for(|mode| way(mode).ends != way(&born).ends) => {}
    }
    let _ = to.shutdown().await;
    // Reads and discards the bytes, so that the sender does not wait.
    while let Some(chunk) = queued.recv().await {
        room.add_permits(chunk.weight());
        if chunk.bytes.is_empty() {
            return;
        }
    }
}

async fn deliver(
    queued: &mut mpsc::UnboundedReceiver<Chunk>,
    to: &mut tcp::OwnedWriteHalf,
    room: &Semaphore,
    born: Mode,
    mode: &mut watch::Receiver<Mode>,
    way: impl Fn(&Mode) -> Way + Copy,
) {
    while let Some(chunk) = queued.recv().await {
        if chunk.due > Instant::now() {
            tokio::time::sleep_until(chunk.due).await;
        }
        let end = chunk.bytes.is_empty();
        let passes = |mode: &Mode| !mode.stalled && (end || !way(mode).hold);
        match mode.wait_for(|mode| mode.cuts != born.cuts || passes(mode)).await {
            // Bytes that were held back when the connection was cut must not pass.
            Ok(mode) if mode.cuts == born.cuts => {}
            _ => return,
        }
        if end || to.write_all(&chunk.bytes).await.is_err() {
            return;
        }
        room.add_permits(chunk.weight());
    }
}
