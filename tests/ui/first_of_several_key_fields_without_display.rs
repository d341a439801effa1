use std::num::ParseIntError;
use std::str::FromStr;

use shizuku_kv::KeyValue;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Id(u64);

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
