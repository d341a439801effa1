//! The backend for NATS on real servers, and the harness that starts and disturbs them.

mod connection;
mod cursors;
mod cursors_cluster;
mod harness;
mod harness_cluster;
mod limits;
mod opening;
mod permissions;
mod watch;
