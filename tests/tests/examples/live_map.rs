//! `live_map`: a process that watches a registry, and others that change it.

use shizuku_kv_tests::{NatsServer, unique};

use crate::driver::{Example, SECRET, assert_story};

/// End of a rejection without an earlier good entry.
const NOTHING: &str = "; in force is nothing";

/// Returns the example on a store of its own.
fn example(server: &NatsServer) -> Example {
    Example::new("live_map", &server.url(), &unique("live-map"))
}

#[test]
fn watcher_prints_the_old_and_the_new_entry() {
    let registry = example(NatsServer::shared());
    let write = |words: &[&str]| registry.run(words).version();
    let first = write(&["register", "web", "1", "10.0.0.1:80"]);
    let watch = registry.start(&["watch"]);
    watch.until_printed("following\n");
    let mut expected =
        vec![format!("service.web.1: 10.0.0.1:80 (version {first})"), "following".to_owned()];
    // Waits for each, because a value that is replaced at once may be skipped.
    let mut told = |line: String| {
        watch.until_printed(&format!("{line}\n"));
        expected.push(line);
    };

    let second = write(&["register", "web", "2", "10.0.0.2:80"]);
    told(format!("service.web.2: new, 10.0.0.2:80 (version {second})"));
    let moved = write(&["register", "web", "1", "10.0.0.3:80"]);
    told(format!("service.web.1: 10.0.0.1:80 (version {first}) -> 10.0.0.3:80 (version {moved})"));
    assert_eq!(registry.run(&["pick", "web"]).printed(), "10.0.0.3:80");

    let drained = write(&["drain", "web", "1"]);
    told(format!(
        "service.web.1: 10.0.0.3:80 (version {moved}) -> 10.0.0.3:80, draining (version {drained})"
    ));
    assert_eq!(registry.run(&["pick", "web"]).printed(), "10.0.0.2:80");
    assert_eq!(
        registry.run(&["list"]).printed(),
        format!(
            "service.web.1: 10.0.0.3:80, draining (version {drained})\n\
             service.web.2: 10.0.0.2:80 (version {second})"
        )
    );

    write(&["remove", "web", "1"]);
    told(format!("service.web.1: gone, was 10.0.0.3:80, draining (version {drained})"));
    // The output has exactly these lines.
    assert_eq!(watch.printed().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn watcher_of_one_service_prints_no_other() {
    let registry = example(NatsServer::shared());
    let register = |name: &str| registry.run(&["register", name, "1", "10.0.0.1:80"]).version();
    for name in ["db", "web.eu", "webs"] {
        register(name);
    }
    let watch = registry.start(&["watch", "--name", "web"]);
    watch.until_printed("following\n");
    for name in ["db", "web.eu", "webs"] {
        register(name);
    }
    let version = register("web");
    watch.until_printed("service.web.1: ");
    assert_eq!(
        watch.printed(),
        format!("following\nservice.web.1: new, 10.0.0.1:80 (version {version})\n")
    );
}

#[test]
fn bad_entry_is_rejected_and_the_last_good_one_stays() {
    let registry = example(NatsServer::shared());
    let good = registry.run(&["register", "web", "1", "10.0.0.1:80"]).version();
    let watch = registry.start(&["watch"]);
    watch.until_printed("following\n");

    let refused = |key: &str, bad: &str, why: &str, in_force: &str| {
        let version = registry.run(&["set-raw", key, bad]).version();
        let why = format!("refused: {}", why.replace("VERSION", &version));
        watch.until_printed(&why);
        let is_it = |line: &str, in_force| line.starts_with(&why) && line.ends_with(in_force);
        let printed = watch.printed();
        assert!(
            printed.lines().any(|line| is_it(line, in_force)),
            "no {why:?} … {in_force:?} in:\n{printed}"
        );
        // A later reader sees the same, and has never known a good entry.
        let listed = registry.run(&["list"]).printed();
        assert!(
            listed.lines().any(|line| is_it(line, NOTHING)),
            "no {why:?} … {NOTHING:?} in:\n{listed}"
        );
        assert!(!listed.contains(SECRET), "{listed}");
    };
    let undecodable =
        |key: &str| format!("Instance under key {key} (version VERSION) cannot be decoded: ");
    let last_good = format!("; in force is 10.0.0.1:80 (version {good})");
    refused("service.web.1", SECRET, &undecodable("service.web.1"), &last_good);
    refused(
        "service.web.1",
        r#"{"address": "hunter2"}"#,
        &undecodable("service.web.1"),
        &last_good,
    );
    refused("service.db.1", r#"{"address": "hunter2"}"#, &undecodable("service.db.1"), NOTHING);
    refused(
        "service.web.first",
        SECRET,
        "key service.web.first is not a key of Instance: ",
        NOTHING,
    );
    // A command does not change an unreadable entry.
    let complaint = registry.run(&["drain", "web", "1"]).refused();
    assert!(complaint.contains("cannot be decoded") && !complaint.contains(SECRET), "{complaint}");

    // A replacement repairs it. The change is relative to the last current value.
    let mended = registry.run(&["register", "web", "1", "10.0.0.2:80"]).version();
    let change =
        format!("service.web.1: 10.0.0.1:80 (version {good}) -> 10.0.0.2:80 (version {mended})\n");
    watch.until_printed(&change);
    let printed = watch.printed();
    assert!(!printed.contains(SECRET), "{printed}");
    // Each is reported once, and no other change is.
    assert_eq!(
        (printed.matches("refused: ").count(), printed.lines().count()),
        (4, 7),
        "{printed}"
    );
}

#[test]
fn watcher_survives_its_server() {
    let mut server = NatsServer::start();
    let registry = example(&server);
    let register =
        |id: &str, address: &str| registry.run(&["register", "web", id, address]).version();
    let first = register("1", "10.0.0.1:80");
    let watch = registry.start(&["watch"]);
    watch.until_printed("following\n");

    server.kill();
    watch.until_printed("\nthe store is not heard from: ");
    server.restart();
    let moved = register("1", "10.0.0.2:80");
    let change =
        format!("service.web.1: 10.0.0.1:80 (version {first}) -> 10.0.0.2:80 (version {moved})");
    watch.until_printed(&change);
    watch.until_printed("\nthe store is heard from again\n");
    let second = register("2", "10.0.0.3:80");
    let new = format!("service.web.2: new, 10.0.0.3:80 (version {second})");
    watch.until_printed(&new);
    // No entry was gone in between, and none came twice.
    let printed = watch.printed();
    let registered: Vec<_> = printed.lines().filter(|line| line.starts_with("service.")).collect();
    assert_eq!(registered, [format!("service.web.1: 10.0.0.1:80 (version {first})"), change, new]);
}

/// Each mistake is reported before any write.
#[test]
fn mistakes_are_reported() {
    let registry = example(NatsServer::shared());
    registry.assert_mistakes(
        &[
            &["begin"],
            &["pick"],
            &["watch", "--name"],
            &["register", "web", "1"],
            &["set-raw", "web"],
        ],
        &[
            (&["register", "web", "one", "10.0.0.1:80"], "an ID is a number"),
            (&["register", "web", "1", "here"], "an ADDRESS is one such as 10.0.0.1:80"),
            (&["drain", "web", "1"], "service.web.1 is not registered"),
            (&["pick", "web"], "no instance of web takes requests"),
        ],
        &["list"],
    );
    assert_eq!(registry.run(&["list"]).printed(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn demonstration_prints_each_step() {
    assert_story("live_map", STORY).await;
}

const STORY: &str = "\
change  service.web.1: new, 10.0.0.1:80 (version 1)
change  service.web.2: new, 10.0.0.2:80 (version 2)
change  service.db.1: new, 10.0.1.1:5432 (version 3)
pick    10.0.0.1:80
pick    10.0.0.2:80
change  service.web.1: 10.0.0.1:80 (version 1) -> 10.0.0.1:80, draining (version 4)
pick    10.0.0.2:80
pick    10.0.0.2:80
break   {\"address\": \"nowhere\"}: version 5
refuse  Instance under key service.web.2 (version 5) cannot be decoded: does not fit the type at line 1, column 21; \
write it anew, or adapt the type; in force is 10.0.0.2:80 (version 2)
pick    10.0.0.2:80
change  service.web.2: gone, was 10.0.0.2:80 (version 2)
pick    no instance of web takes requests
close   the store is deleted";
