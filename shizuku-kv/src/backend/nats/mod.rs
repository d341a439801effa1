//! The NATS JetStream backend: a store is a bucket in the layout of ADR-8, shared with every other
//! NATS client.
//!
//! async-nats connects, authenticates, reconnects and subscribes. The rest of the contract is here:
//!
//! | file | idea |
//! |---|---|
//! | `config` | the configuration of a connection, and the parts that may be shown |
//! | `url` | the same, read from a URL |
//! | `connection` | the public connection: opening, health, shutdown |
//! | `link` | the state of a connection, and interruptions of requests |
//! | `link_events` | the state that the client's events report |
//! | `session`, `first_answer` | the first answer on a connection, with which it counts as up |
//! | `outage` | the log of an outage |
//! | `server_errors` | the texts of errors that the server sends beside its answers |
//! | `limits` | limits that the server does not announce |
//! | `retry` | a request that is sent until it is answered |
//! | `api` | requests to the JetStream API |
//! | `credentials` | credentials that are read again at each connection |
//! | `space` | the JetStream of a connection: its domain or API prefix |
//! | `denials` | requests that the server denies, and the missing right |
//! | `rejections` | the mapping of the server's error codes to `KvError` |
//! | `requests`, `pending` | sending requests, and routing their answers |
//! | `wire` | subjects, headers and messages, as pure functions |
//! | `bucket`, `settings` | a bucket and its newest known settings |
//! | `stream_info` | the server's description of a stream |
//! | `streams` | opens, creates, changes, deletes and lists the streams of buckets |
//! | `shape` | streams that cannot be a store |
//! | `store` | the store: the traits of the contract |
//! | `core` | the parts that reads, writes and watches share |
//! | `by_name` | reading of many keys, in batches |
//! | `writer`, `write` | writing: the operations, and one write on its way |
//! | `fenced` | writing under a lock: a read of the newest token, and a swap |
//! | `figures` | how many keys have an entry, from the leader |
//! | `outcome` | the outcome of a write whose acknowledgement was lost |
//! | `consumer`, `arrival` | an ordered pull consumer: each message once, in order, in slices |
//! | `filters` | the subjects that cover a scope |
//! | `open_consumers`, `delete_on_drop` | the deletion of consumers whose reader was dropped |
//! | `liveness` | the end of a connection, and its silence |
//! | `leader`, `lag` | requests to the leader; consumers on replicas that are behind |
//! | `initial_sync` | the proof that the initial state has been delivered |
//! | `subjects` | the subjects that were delivered |
//! | `scan` | listings over it |
//! | `watch` | watches over it: opening, delivery, comparison with the leader |
//! | `expiry` | the decision whether a watch can resume at a position |
//! | `deleted` | the deletions that a watch has delivered |
//! | `census` | detection of entries that left the stream without a message |
//! | `scripted` | a server whose answers a test writes |

mod api;
mod arrival;
mod bucket;
mod by_name;
mod census;
mod config;
mod connection;
mod consumer;
mod core;
mod credentials;
mod delete_on_drop;
mod deleted;
mod denials;
mod expiry;
mod fenced;
mod figures;
mod filters;
mod first_answer;
mod initial_sync;
mod lag;
mod leader;
mod limits;
mod link;
mod link_events;
mod liveness;
mod open_consumers;
mod outage;
mod outcome;
mod pace;
mod pending;
mod rejections;
mod requests;
mod retry;
mod scan;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports by panicking")]
mod scripted;
mod server_errors;
mod session;
mod settings;
mod shape;
mod space;
mod store;
mod stream_info;
mod streams;
mod subjects;
mod url;
mod watch;
mod wire;
mod write;
mod writer;

pub use config::{NatsAuth, NatsConnectionConfig, NatsTls};
pub use connection::{NatsConnection, nats_connect};
