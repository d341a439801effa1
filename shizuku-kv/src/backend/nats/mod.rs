//! The NATS JetStream backend: a store is a bucket in the layout of ADR-8, shared with every other
//! NATS client.
//!
//! async-nats carries the bytes: connecting, authenticating, reconnecting, subscriptions. What the
//! contract needs beyond that is here:
//!
//! | file | idea |
//! |---|---|
//! | `config` | what a connection needs to know, and what of it may be shown |
//! | `url` | the same, read from a URL |
//! | `connection` | the public connection: opening, health, shutdown |
//! | `link` | requests that end: deadlines, reconnection, the server's errors |
//! | `session` | the first answer on a connection, with which it counts as up, and the log of an outage |
//! | `credentials` | credentials that are read again at each connection |
//! | `space` | the JetStream of a connection: its domain or API prefix |
//! | `refusals` | requests that the server denies, and the missing right |
//! | `rejections` | the mapping of the server's error codes to `KvError` |
//! | `requests` | who waits for which answer, for as long as it is waited for |
//! | `wire` | subjects, headers and messages, as pure functions |
//! | `bucket` | a store's configuration as a stream's, and back |
//! | `shape` | streams that cannot be a store |
//! | `store` | reading |
//! | `by_name` | reading of many keys, in batches |
//! | `writer`, `write` | writing: the operations, and one write on its way |
//! | `fenced` | writing under a lock: a look at the newest token, and a swap |
//! | `figures` | how many keys have an entry, from the leader |
//! | `fate` | what became of a write whose acknowledgement was lost |
//! | `consumer` | an ordered pull consumer: every message once and in order, or the word that it was lost |
//! | `farewell` | the deletion of consumers whose reader was dropped |
//! | `lookout` | what may come to it in the place of a message |
//! | `leader` | what the leader has, and a consumer on another replica may not |
//! | `state` | knowing when the state that was there has been delivered |
//! | `scan` | listings over it |
//! | `watch` | watches over it: the state machine that heals |
//! | `expiry` | the decision whether a watch can resume at a position |
//! | `deleted` | the deletions that a watch has delivered |
//! | `census` | detection of entries that left the stream without a message |

mod bucket;
mod by_name;
mod census;
mod config;
mod connection;
mod consumer;
mod credentials;
mod deleted;
mod expiry;
mod farewell;
mod fenced;
mod figures;
mod initial_sync;
mod leader;
mod link;
mod liveness;
mod outcome;
mod refusals;
mod rejections;
mod requests;
mod scan;
mod session;
mod shape;
mod space;
mod store;
mod url;
mod watch;
mod wire;
mod write;
mod writer;

pub use config::{NatsAuth, NatsConnectionConfig, NatsTls};
pub use connection::{NatsConnection, nats_connect};
