use std::fmt;

use shizuku_kv::KeyValue;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Id(u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(KeyValue)]
#[kv(key = "user.{id}.{name}.{place}")]
struct User {
    id: Id,
    name: String,
    place: u64,
}

fn main() {}
