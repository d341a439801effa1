//! The typed layer: records and their codecs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking"
)]

mod codecs;
mod fixture;
mod modify;
mod seed_docs;
mod seed_folders;
mod streams;
mod typed;

type Outcome = Result<(), Box<dyn std::error::Error>>;
