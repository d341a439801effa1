//! The NATS JetStream backend: a store is a bucket in the layout of ADR-8, shared with every other NATS client.
//!
//! async-nats carries the bytes: connecting, authenticating, reconnecting, subscriptions. What the contract needs beyond
//! that is here:
//!
//! | file | idea |
//! |---|---|
//! | `config` | what a connection needs to know, and what of it may be shown |
//! | `url` | the same, read from a URL |
//! | `connection` | the public connection: opening, health, shutdown |
//! | `link` | requests that end: deadlines, reconnection, the server's errors |
//! | `requests` | who waits for which answer, for as long as it is waited for |
//! | `wire` | subjects, headers and messages, as pure functions |
//! | `bucket` | a store's configuration as a stream's, and back |
//! | `store` | reading |
//! | `writer`, `write` | writing: the operations, and one write on its way |
//! | `fenced` | writing under a lock: a look at the newest token, and a swap |
//! | `figures` | how many keys have an entry, from the leader |
//! | `fate` | what became of a write whose acknowledgement was lost |
//! | `consumer` | an ordered pull consumer: every message once and in order, or the word that it was lost |
//! | `lookout` | what may come to it in the place of a message |
//! | `leader` | what the leader has, and a consumer on another replica may not |
//! | `state` | knowing when the state that was there has been delivered |
//! | `scan` | listings over it |
//! | `watch` | watches over it: the state machine that heals |

mod bucket;
mod config;
mod connection;
mod consumer;
mod fate;
mod fenced;
mod figures;
mod leader;
mod link;
mod lookout;
mod requests;
mod scan;
mod state;
mod store;
mod url;
mod watch;
mod wire;
mod write;
mod writer;

pub use config::{NatsAuth, NatsConnectionConfig, NatsTls};
pub use connection::{NatsConnection, nats_connect};
