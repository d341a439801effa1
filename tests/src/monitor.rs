//! Reads a server's monitoring port.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wait::PATIENCE;

/// Returns a page such as `/connz`, whatever its status. Returns `None` if the server does not
/// answer at once, or not with JSON.
pub(crate) async fn page(port: u16, path: &str) -> Option<Value> {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        // With version 1.0 the body comes in one piece and ends with the connection.
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok()?
}

/// Requests a [`page`] until the server answers, because a server that has just started or that
/// runs on a loaded machine may not answer at once. Returns `None` if [`PATIENCE`] passes first.
pub(crate) async fn page_when_ready(port: u16, path: &str) -> Option<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match page(port, path).await {
            None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
            answer => return answer,
        }
    }
}

pub(crate) async fn connections(port: u16) -> usize {
    let page = page_when_ready(port, "/connz?limit=1")
        .await
        .expect("the server answers on its monitoring port");
    let total = page["total"].as_u64().and_then(|total| total.try_into().ok());
    total.unwrap_or_else(|| panic!("the server does not say how many connections it has: {page}"))
}
