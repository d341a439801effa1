//! Stores in a folder: the conformance suite in each mode, and the properties that only they have.

mod conformance;
mod modes;
mod process;
