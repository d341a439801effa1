//! The exceptions from the rules, which can only become fewer.
//!
//! A room that is not in a table has none. To clean a room, rewrite its findings, then lower or
//! remove its number: set it to 0 to see the findings, and the test prints what to record. A number
//! is never raised; a change that adds a finding is rewritten.

/// Number of texts of each room that open with a forbidden word.
pub(crate) const OPENERS: &[(&str, usize)] = &[
    (".", 5),
    ("benches", 7),
    ("docs", 10),
    ("fuzz", 2),
    ("shizuku-kv", 9),
    ("shizuku-kv/src/backend", 11),
    ("shizuku-kv/src/conformance", 32),
    ("shizuku-kv/src/guide", 5),
    ("shizuku-kv/src/live", 3),
    ("shizuku-kv/src/record", 13),
    ("shizuku-kv/src/replica", 28),
    ("shizuku-kv/src/rw_lock", 15),
    ("shizuku-kv/src/snapshot", 6),
    ("shizuku-kv/src/store", 6),
    ("tests", 85),
];

/// Number of test names of each room that are too long.
pub(crate) const NAMES: &[(&str, usize)] = &[
    ("shizuku-kv/src/backend", 2),
    ("shizuku-kv/src/live", 2),
    ("shizuku-kv/src/replica", 2),
    ("shizuku-kv/src/rw_lock", 3),
    ("shizuku-kv/src/snapshot", 5),
    ("shizuku-kv/src/store", 7),
    ("tests", 81),
];

/// Files that may have more lines than others, each with the reason.
pub(crate) const LONG_FILES: &[(&str, &str)] = &[
    ("shizuku-kv/src/backend/memory/log.rs", "one data structure with its invariants"),
    ("shizuku-kv/src/backend/memory/tests.rs", "the tests of one backend"),
    ("shizuku-kv/src/backend/nats/url.rs", "one grammar, and its tests"),
    ("shizuku-kv/src/conformance/expiry.rs", "the checks of one family"),
    ("shizuku-kv/src/conformance/fenced.rs", "the checks of one family"),
    ("shizuku-kv/src/conformance/writes.rs", "the checks of one family"),
    ("shizuku-kv/src/replica/run.rs", "one driver"),
    ("shizuku-kv/src/rw_lock/coordinator.rs", "to be split: freshness of the record is a state"),
    ("shizuku-kv/src/rw_lock/election.rs", "one public type, and its documentation"),
    ("shizuku-kv/src/rw_lock/mod.rs", "to be split: the public type belongs in a file of its own"),
    ("shizuku-kv/src/rw_lock/model/world.rs", "one model"),
    ("shizuku-kv/src/rw_lock/record.rs", "one stored form, and its tests"),
    ("shizuku-kv/src/rw_lock/session.rs", "to be split: sessions, and their renewal"),
    ("shizuku-kv/src/snapshot/writer.rs", "one writer"),
    ("shizuku-kv/src/store/handle.rs", "one public type, and its documentation"),
    ("shizuku-kv/src/store/shared/subscriptions.rs", "one data structure with its invariants"),
    ("shizuku-kv/src/record/codec/bounded.rs", "one wrapper of a deserializer, method by method"),
    ("shizuku-kv/src/record/key_value.rs", "two traits, and their documentation"),
    ("tests/src/cluster.rs", "one helper of the harness"),
    ("tests/tests/codecs.rs", "the tests of one subject"),
    ("tests/tests/conformance_can_fail/broken.rs", "one wrapper with all its faults"),
    ("tests/tests/differential/run.rs", "one run of both backends"),
    ("tests/tests/examples/edge_replica.rs", "the tests of one example"),
    ("tests/tests/faults/check.rs", "the checks of one history, and their tests"),
    ("tests/tests/fenced_writes.rs", "the tests of one subject"),
    ("tests/tests/harness_cluster.rs", "the tests of one subject"),
    ("tests/tests/live.rs", "the tests of one subject"),
    ("tests/tests/live_map.rs", "the tests of one subject"),
    ("tests/tests/replica/silent.rs", "the tests of one subject"),
    ("tests/tests/secrets.rs", "the tests of one subject"),
    ("tests/tests/shared_watch.rs", "the tests of one subject"),
    ("tests/tests/typed.rs", "the tests of one subject"),
];

/// Modules that import one of a higher layer, and the module that they import.
pub(crate) const UPWARD: &[(&str, &str)] = &[];

/// Modules that import each other, directly or through others of the same line.
pub(crate) const CYCLES: &[&[&str]] = &[
    &[
        "backend::memory",
        "backend::memory::log",
        "backend::memory::log::upkeep",
        "backend::memory::scan",
        "backend::memory::shared",
        "backend::memory::store",
        "backend::memory::watch",
    ],
    &["conformance", "conformance::suite"],
    &["conformance::capability", "conformance::check", "conformance::fixture"],
    &[
        "conformance::storage",
        "conformance::storage::changes",
        "conformance::storage::data",
        "conformance::storage::places",
        "conformance::storage::random",
        "conformance::storage::subject",
    ],
    &[
        "live",
        "live::drive",
        "live::map",
        "live::map::changes",
        "live::map::drive",
        "live::map::open",
        "live::map::snapshot",
        "live::map::table",
    ],
    &["record::codec::bounded", "record::codec::serde_message"],
    &[
        "record::entry",
        "record::error",
        "record::key",
        "record::key_value",
        "record::modify",
        "record::put",
        "record::read",
        "record::round_trip",
        "record::scan",
        "record::watch",
        "record::write",
    ],
    &["replica", "replica::compare", "replica::run"],
    &[
        "rw_lock",
        "rw_lock::claims",
        "rw_lock::coordinator",
        "rw_lock::failure_detector",
        "rw_lock::failure_detector::way",
        "rw_lock::following",
        "rw_lock::guard",
        "rw_lock::held",
        "rw_lock::inspect",
        "rw_lock::lock_manager",
        "rw_lock::reentry",
        "rw_lock::session",
        "rw_lock::session::slots",
    ],
    &["snapshot::compact", "snapshot::writer"],
    &[
        "store::contract",
        "store::figures",
        "store::handle",
        "store::handle_fenced",
        "store::handle_ttl",
        "store::pulse",
        "store::shared",
        "store::shared::upkeep",
    ],
    &["store::error", "store::key", "store::version"],
];
