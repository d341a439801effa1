//! The conformance suite passes on both backends, and finds the faults of broken ones.

mod can_fail;
mod memory;
mod nats;
