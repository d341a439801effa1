//! `live_config`: a service over HTTP, and the commands that change its configuration.

mod service;

use serde_json::{Value, json};
use service::Service;
use shizuku_kv_tests::{NatsServer, unique};

use crate::driver::{Example, SECRET, demonstrate};

/// Returns the example on a store of its own.
fn example(server: &NatsServer) -> Example {
    Example::new("live_config", &server.url(), &unique("live-config"))
}

/// Runs from the first start to the end, including the server's death.
#[test]
fn service_follows_its_configuration() {
    let mut server = NatsServer::start();
    let example = example(&server);
    let command = |words: &[&str]| example.run(words);

    let service = Service::start(&example);
    let config = service.get_json("/config");
    assert_eq!((&config["pool_size"], &config["version"]), (&json!(4), &Value::Null));
    service.until("/status", |status| status["status"]["state"] == "absent");
    assert_eq!(command(&["show"]).printed(), "no value");

    // Another process changes the configuration.
    let first = command(&["set", "pool_size=8", "features=beta,dark"]).version();
    let config = service.until("/config", |config| config["version"] == *first);
    assert_eq!((&config["pool_size"], &config["features"]), (&json!(8), &json!(["beta", "dark"])));
    service.until("/config", |config| config["pool"] == json!({ "size": 8, "free": 8 }));
    service.until_printed(&format!("pool: 4 -> 8, features: beta, dark (version {first})"));
    assert_eq!(
        (service.get("/feature/beta"), service.get("/feature/gamma")),
        ("on\n".into(), "off\n".into())
    );
    service.until("/status", |status| {
        *status == json!({ "in_force": first, "status": { "state": "current" } })
    });
    assert!(command(&["show"]).printed().starts_with(&format!("version {first}: a pool of 8")));

    // Only the named settings change.
    let good = command(&["set", "features=dark"]).version();
    let config = service.until("/config", |config| config["version"] == *good);
    assert_eq!((&config["pool_size"], &config["features"]), (&json!(8), &json!(["dark"])));
    assert_eq!(service.get("/feature/beta"), "off\n");

    // Values that do not decode or break the rule: the last good value stays, and the service
    // reports why.
    for (bad, why) in [
        (r#"{"pool_size": "hunter2"}"#, "cannot be decoded"),
        (r#"{"pool_size": 0, "features": ["hunter2"]}"#, "`pool_size` is 1 to 100"),
        ("hunter2", "cannot be decoded"),
    ] {
        let version = command(&["set-raw", bad]).version();
        let status = service.until("/status", |status| status["status"]["version"] == *version);
        assert_eq!(
            (&status["in_force"], &status["status"]["state"]),
            (&json!(good), &json!("rejected"))
        );
        let said = status["status"]["why"].as_str().unwrap();
        assert!(said.contains(why), "{said}");
        service.until_printed(&format!("status: rejected: {said}; version {good} is in force"));
        let config = service.get_json("/config");
        assert_eq!((&config["pool_size"], &config["version"]), (&json!(8), &json!(good)));
        assert_eq!(service.get("/feature/dark"), "on\n");
        // A command does not change an unreadable value without a message.
        for words in [&["show"][..], &["set", "pool_size=5"]] {
            let refused = command(words).refused();
            assert!(refused.contains(why) && !refused.contains(SECRET), "{refused}");
        }
    }
    let good = command(&["replace", "pool_size=6"]).version();
    service.until("/config", |config| config["pool"] == json!({ "size": 6, "free": 6 }));
    service.until("/status", |status| {
        *status == json!({ "in_force": good, "status": { "state": "current" } })
    });
    service.until_printed(&format!("pool: 8 -> 6, features: none (version {good})"));

    // Without its server the service continues, and reports since when.
    server.kill();
    let status = service.until("/status", |status| status["status"]["state"] == "stale");
    assert!(
        status["status"]["since"].as_u64() > Some(0) && status["status"]["why"].is_string(),
        "{status}"
    );
    service.until_printed("status: stale, ");
    assert_eq!(service.get_json("/config")["pool_size"], 6);
    server.restart();
    service.until("/status", |status| status["status"]["state"] == "current");
    let good = command(&["set", "pool_size=7"]).version();
    service.until("/config", |config| config["version"] == *good && config["pool"]["free"] == 7);

    // A deleted value stays current too.
    command(&["delete"]).version();
    service.until("/status", |status| status["status"]["state"] == "absent");
    service.until_printed(&format!("status: absent; version {good} is in force"));
    assert_eq!(service.get_json("/config")["pool_size"], 7);

    let printed = service.terminate();
    assert!(!printed.contains(SECRET) && printed.ends_with("\nstopped"), "{printed}");
}

/// The pool is more than a number. It has as many permits as the configuration says, when it grows
/// and when it shrinks.
#[test]
fn pool_is_as_large_as_configured() {
    let example = example(NatsServer::shared());
    let service = Service::start(&example);
    for size in [1, 8, 1] {
        example.run(&["set", &format!("pool_size={size}")]).version();
        service.until("/config", |config| config["pool"] == json!({ "size": size, "free": size }));
        if size == 1 {
            service.until_jobs(4, |answers| answers.contains(&503) && answers.contains(&200));
        } else {
            service.until_jobs(4, |answers| *answers == [200; 4]);
        }
    }
}

/// Uses a value from before the service, good or bad, and a store name from the command line.
#[test]
fn service_starts_with_the_stored_value() {
    let example = example(NatsServer::shared());
    let good = example.run(&["set", "pool_size=9"]).version();
    {
        let service = Service::start(&example);
        assert_eq!(service.get_json("/config")["pool"]["size"], 9);
        service.until_printed(&format!("status: current; version {good} is in force"));
        service.terminate();
    }
    let bad = example.run(&["set-raw", SECRET]).version();
    let service = Service::start(&example);
    let status = service.get_json("/status");
    assert_eq!((&status["in_force"], &status["status"]["version"]), (&Value::Null, &json!(bad)));
    service.until_printed("; the default is in force");
    assert!(!service.terminate().contains(SECRET));
}

/// Each mistake is reported before any write.
#[test]
fn mistakes_are_reported() {
    let example = example(NatsServer::shared());
    example.assert_mistakes(
        &[&["begin"], &["set", "size=3"], &["set-raw"], &["serve", "now"], &["show", "--store"]],
        &[(&["set", "pool_size=many"], "`pool_size` is a number")],
        &["show"],
    );
    let refused = example.run(&["replace", "pool_size=0"]).refused();
    assert!(refused.contains("`pool_size` is 1 to 100"), "{refused}");
    assert_eq!(example.run(&["show"]).printed(), "no value");
}

#[test]
fn demonstration_prints_each_step() {
    for url in ["memory:", &NatsServer::shared().url()] {
        let printed = demonstrate("live_config", url).printed();
        let mut lines = printed.lines();
        // The output has these in this order, possibly with other lines between.
        for expected in [
            "open    store live-config-",
            r#"ask     {"features":[],"pool":{"free":4,"size":4}"#,
            "set     8 places",
            r#"ask     {"features":["beta","dark"],"pool":{"free":8,"size":8}"#,
            "ask     the feature beta is on",
            r#"break   {"pool_size": "many"}"#,
            r#"ask     {"in_force":"1","status":{"state":"rejected","version":"2""#,
            r#"break   {"pool_size": 0}"#,
            r#"ask     {"in_force":"1","status":{"state":"rejected","version":"3""#,
            r#"ask     {"features":["beta","dark"],"pool":{"free":8,"size":8}"#,
            "mend    a pool of 6",
            r#"ask     {"in_force":"4","status":{"state":"current"}}"#,
            "delete  version 5",
            r#"ask     {"in_force":"4","status":{"state":"absent"}}"#,
            "stopped",
            "close   the store is deleted",
        ] {
            assert!(
                lines.any(|line| line.starts_with(expected)),
                "{url}: no {expected:?} in its place:\n{printed}"
            );
        }
        assert_eq!(lines.next(), None);
        // The service's own output in between.
        for expected in [
            "pool: 4 -> 8, features: beta, dark (version 1)",
            "pool: 8 -> 6, features: none (version 4)",
        ] {
            assert!(
                printed.lines().any(|line| line == expected),
                "{url}: no {expected:?}:\n{printed}"
            );
        }
    }
}
