//! Live values and live maps.

mod map;
mod value;
