use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use shizuku_kv::KeyValue;

#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Id(u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
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
