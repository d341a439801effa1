//! Handles of stores: their guarantees on both backends, and their errors.

mod bad_input;
mod capabilities;
mod faulty_store;
mod fenced_writes;
mod handle;
mod lost_acknowledgements;
mod operation_names;
mod shared_watch;
