//! Random operations under random faults, compared with a model or with another backend.

mod differential;
mod faults;
mod linearizability;
