//! The typed layer: records and their codecs.

mod codecs;
mod seed_docs;
mod typed;
