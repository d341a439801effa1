//! The logs of processes that acquire locks, and a checker that does not depend on the library.

pub(crate) mod check;
pub(crate) mod holds;
pub(crate) mod line;
