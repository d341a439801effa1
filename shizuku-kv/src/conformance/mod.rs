//! The contract as checks.
