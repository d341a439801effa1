//! A connection to a server whose answers a test writes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use async_nats::ConnectOptions;

use super::link::Link;
use super::link_events::LinkEvents;
use super::space::ApiSpace;

/// Returns a connection that is up, and whose client accepts one message at a time. `answer` gets
/// the subject of each request.
pub(super) async fn link(answer: impl FnMut(&str) -> String + Send + 'static) -> Arc<Link> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || serve(listener.accept()?.0, answer));
    let client = ConnectOptions::new().client_capacity(1).connect(address).await.unwrap();
    let link = Link::open(client, LinkEvents::new(), ApiSpace::default()).await.unwrap();
    link.session.answered(link.session.number());
    link.client().flush().await.unwrap();
    link
}

fn serve(mut stream: TcpStream, mut answer: impl FnMut(&str) -> String) -> io::Result<()> {
    stream.write_all(b"INFO {\"server_id\":\"a\",\"version\":\"2.15.0\",\"proto\":1,")?;
    stream.write_all(b"\"headers\":true,\"jetstream\":true,\"max_payload\":1048576}\r\n")?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["PING"] => stream.write_all(b"PONG\r\n")?,
            ["PUB", subject, reply, size] => {
                skip(&mut lines, size)?;
                let answer = answer(subject);
                write!(stream, "MSG {reply} 1 {}\r\n{answer}\r\n", answer.len())?;
            }
            ["PUB", _, size] => skip(&mut lines, size)?,
            _ => {}
        }
        line.clear();
    }
    Ok(())
}

fn skip(lines: &mut impl Read, size: &str) -> io::Result<()> {
    lines.read_exact(&mut vec![0; size.parse::<usize>().unwrap() + 2])
}
