//! Values of every kind, at random, and types that contain themselves.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use serde::{Deserialize, Serialize};
use shizuku_kv::Bytes;

/// Contains every kind of value in serde's data model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) signed: i64,
    pub(super) big: u128,
    pub(super) small: i128,
    pub(super) ratio: f64,
    pub(super) half: f32,
    pub(super) text: String,
    pub(super) letter: char,
    pub(super) flag: bool,
    pub(super) raw: Vec<u8>,
    pub(super) array: [u8; 3],
    pub(super) pair: (i8, String),
    pub(super) nothing: (),
    pub(super) unit: Unit,
    pub(super) meters: Meters,
    pub(super) point: Point,
    pub(super) mode: Mode,
    pub(super) modes: Vec<Mode>,
    pub(super) inner: Option<Box<Inner>>,
    pub(super) by_name: BTreeMap<String, Option<Inner>>,
    pub(super) by_number: BTreeMap<i16, u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Unit;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Meters(pub(super) u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point(pub(super) i32, pub(super) i32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) meters: Option<Meters>,
    pub(super) counts: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    Plain,
    Named { port: u16, host: Option<String> },
    Both(u8, String),
    One(Meters),
    Again(Box<Mode>),
}

pub(super) fn modes() -> impl Strategy<Value = Mode> {
    let flat = prop_oneof![
        Just(Mode::Plain),
        any::<(u16, Option<String>)>().prop_map(|(port, host)| Mode::Named { port, host }),
        any::<(u8, String)>().prop_map(|(number, text)| Mode::Both(number, text)),
        any::<u32>().prop_map(|meters| Mode::One(Meters(meters))),
    ];
    flat.prop_recursive(4, 4, 1, |inner| inner.prop_map(|mode| Mode::Again(Box::new(mode))))
}

pub(super) fn inners() -> impl Strategy<Value = Inner> {
    (any::<String>(), option::of(any::<u32>()), vec(any::<u16>(), 0..5))
        .prop_map(|(name, meters, counts)| Inner { name, meters: meters.map(Meters), counts })
}

pub(super) fn records() -> impl Strategy<Value = Record> {
    // Quarters are exact in every format.
    let numbers =
        (any::<u64>(), any::<i64>(), any::<u128>(), any::<i128>(), any::<i32>(), any::<i16>());
    let texts =
        (any::<String>(), any::<char>(), any::<bool>(), vec(any::<u8>(), 0..40), any::<[u8; 3]>());
    let parts =
        (any::<(i8, String)>(), any::<u32>(), any::<(i32, i32)>(), modes(), vec(modes(), 0..4));
    let maps = (
        option::of(inners()),
        btree_map(any::<String>(), option::of(inners()), 0..4),
        btree_map(any::<i16>(), any::<u8>(), 0..4),
    );
    (numbers, texts, parts, maps).prop_map(|(numbers, texts, parts, maps)| Record {
        id: numbers.0,
        signed: numbers.1,
        big: numbers.2,
        small: numbers.3,
        ratio: f64::from(numbers.4) / 4.0,
        half: f32::from(numbers.5) / 4.0,
        text: texts.0,
        letter: texts.1,
        flag: texts.2,
        raw: texts.3,
        array: texts.4,
        pair: parts.0,
        nothing: (),
        unit: Unit,
        meters: Meters(parts.1),
        point: Point(parts.2.0, parts.2.1),
        mode: parts.3,
        modes: parts.4,
        inner: maps.0.map(Box::new),
        by_name: maps.1,
        by_number: maps.2,
    })
}

/// Contains every kind of value in protobuf.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Note {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(string, tag = "2")]
    pub(super) text: String,
    #[prost(sint64, optional, tag = "3")]
    pub(super) signed: Option<i64>,
    #[prost(double, tag = "4")]
    pub(super) ratio: f64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) raw: Bytes,
    #[prost(uint32, repeated, tag = "6")]
    pub(super) counts: Vec<u32>,
    #[prost(message, optional, boxed, tag = "7")]
    pub(super) next: Option<Box<Note>>,
    #[prost(btree_map = "string, message", tag = "8")]
    pub(super) notes: BTreeMap<String, Note>,
    #[prost(oneof = "Kind", tags = "9, 10")]
    pub(super) kind: Option<Kind>,
    #[prost(enumeration = "Color", tag = "11")]
    pub(super) color: i32,
    #[prost(group, optional, boxed, tag = "12")]
    pub(super) group: Option<Box<Note>>,
    #[prost(fixed32, tag = "3000")]
    pub(super) fixed: u32,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
    #[prost(bool, tag = "9")]
    Flag(bool),
    #[prost(string, tag = "10")]
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
pub(super) enum Color {
    None = 0,
    Red = 1,
}

pub(super) fn notes() -> impl Strategy<Value = Note> {
    let kinds =
        prop_oneof![any::<bool>().prop_map(Kind::Flag), any::<String>().prop_map(Kind::Name)];
    let flat = (
        any::<(u64, String, Option<i64>, i32, u32)>(),
        vec(any::<u8>(), 0..20),
        vec(any::<u32>(), 0..5),
        option::of(kinds),
        any::<bool>(),
    );
    let flat =
        flat.prop_map(|((id, text, signed, ratio, fixed), raw, counts, kind, is_red)| Note {
            id,
            text,
            signed,
            ratio: f64::from(ratio) / 4.0,
            raw: raw.into(),
            counts,
            kind,
            color: if is_red { Color::Red } else { Color::None }.into(),
            fixed,
            ..Note::default()
        });
    flat.clone().prop_recursive(3, 8, 3, move |inner| {
        let maps = btree_map(any::<String>(), inner.clone(), 0..3);
        (flat.clone(), option::of(inner.clone()), maps, option::of(inner)).prop_map(
            |(note, next, notes, group)| Note {
                next: next.map(Box::new),
                notes,
                group: group.map(Box::new),
                ..note
            },
        )
    })
}

/// A type that contains itself. This is the most that bytes alone can nest.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tree(pub(super) Vec<Tree>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct List {
    pub(super) next: Option<Box<List>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Options(pub(super) Option<Box<Options>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Chain {
    End,
    Next(Box<Chain>),
    Named { next: Box<Chain> },
    Pair(Box<Chain>, u8),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Maps(pub(super) BTreeMap<String, Maps>);

/// A type that needs much stack.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Wide {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) c: String,
    pub(super) d: String,
    pub(super) e: String,
    pub(super) f: String,
    pub(super) g: Option<String>,
    pub(super) h: Option<String>,
    pub(super) i: Option<String>,
    pub(super) j: Option<String>,
    pub(super) k: [u64; 16],
    pub(super) l: u64,
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) o: u64,
    pub(super) p: Vec<u8>,
    pub(super) q: Vec<u8>,
    pub(super) r: Vec<u8>,
    pub(super) s: Vec<u8>,
    pub(super) t: Vec<Wide>,
}
