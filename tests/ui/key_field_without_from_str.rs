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
#[kv(key = "user.{id}")]
struct User {
    id: Id,
}

fn main() {}
