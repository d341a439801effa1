//! Messages with headers of other clients: any that a client may add, and some that imitate the
//! server's.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::kv;
use shizuku_kv::{KvOperation, VersionToken, WatchScope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{World, headers, history_of, listed, next_entry, revision, scanned, state, within};

/// Asserts that every way of reading finds a value under each of the keys, at these revisions.
async fn is_found_everywhere(world: &World, value: &[u8], written: &[(&str, u64)]) {
    let ours = world.open().await;
    let leader = world.open_with_leader_reads().await;
    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    let scan = scanned(&ours).await;
    let keys = listed(&ours).await;
    let many = ours.get_many(written.iter().map(|(key, _)| *key)).await.unwrap();
    for ((key, sequence), found) in written.iter().zip(many) {
        let found = found.unwrap_or_else(|| panic!("get_many does not find {key}"));
        assert_eq!(found.key, *key, "get_many");
        assert_eq!(
            (revision(found.version), found.value.as_ref()),
            (*sequence, value),
            "get_many of {key}"
        );
        for (way, store) in [("direct", &ours), ("leader", &leader)] {
            let found = store
                .get(*key)
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("{way} does not find {key}"));
            assert_eq!(found.key, *key, "{way}");
            assert_eq!(
                (revision(found.version), found.value.as_ref()),
                (*sequence, value),
                "{way} of {key}"
            );
            let year = Duration::from_secs(365 * 86_400);
            assert!(
                found.created.elapsed().is_ok_and(|age| age < year),
                "{way}: {:?}",
                found.created
            );
        }
        assert_eq!(revision(state[*key].version), *sequence, "watch of {key}");
        assert_eq!(state[*key].value, value, "watch of {key}");
        assert_eq!(scan[*key], value, "scan of {key}");
        assert!(keys.contains(*key), "keys with {key}");
        let newest = history_of(&ours, key).await.pop().unwrap();
        assert_eq!((newest.0, newest.1), (*sequence, KvOperation::Put), "history of {key}");
    }
    // A swap compares with the version that was read.
    for (key, sequence) in written {
        ours.update(*key, "swapped", VersionToken::from_u64(*sequence)).await.unwrap();
    }
}

#[tokio::test]
async fn values_with_headers_of_others_are_read() {
    let (world, ..) = World::made_by_them(kv::Config { history: 2, ..kv::Config::default() }).await;
    let value = b"with headers";
    let mut written = Vec::new();
    for (key, headers) in [
        ("id", headers([("Nats-Msg-Id", "the-one")])),
        ("custom", headers([("X-Trace", "a"), ("X-Trace", "b"), ("Content-Type", "text/plain")])),
        ("put", headers([("KV-Operation", "PUT")])),
        ("unknown", headers([("KV-Operation", "SOMETHING")])),
        ("odd", headers([("X-Empty", ""), ("X-Colon", "a: b: c"), ("x", "ü")])),
        ("plain", HeaderMap::new()),
    ] {
        written.push((key, world.publish(key, headers, value).await));
    }
    is_found_everywhere(&world, value, &written).await;
}

#[tokio::test]
async fn headers_that_pretend_to_be_the_servers_do_not_confuse() {
    let (world, ..) = World::made_by_them(kv::Config::default()).await;
    let value = b"genuine";
    let other = world.subject("other");
    let mut written = Vec::new();
    for (key, headers) in [
        ("sequence", headers([("Nats-Sequence", "999999")])),
        ("lower", headers([("nats-sequence", "999999"), ("nats-subject", "$KV.x.y")])),
        (
            "garbage",
            headers([
                ("Nats-Sequence", "x"),
                ("Nats-Time-Stamp", "never"),
                ("Nats-Stream", "KV_x"),
            ]),
        ),
        ("subject", headers([("Nats-Subject", other.as_str())])),
        (
            "pending",
            headers([("Nats-Num-Pending", "0"), ("Nats-UpTo-Sequence", "1"), ("Status", "404")]),
        ),
        ("consumer", headers([("Nats-Last-Consumer", "7"), ("Nats-Pending-Messages", "9")])),
        ("last", headers([("Nats-Last-Sequence", "1")])),
        ("operation", headers([("Shizuku-Op", "stolen")])),
    ] {
        written.push((key, world.publish(key, headers, value).await));
    }
    is_found_everywhere(&world, value, &written).await;
}

#[tokio::test]
async fn message_with_a_status_does_not_hide_others() {
    let (world, ours, theirs) = World::made_by_them(kv::Config::default()).await;
    theirs.put("before", "1".into()).await.unwrap();
    // Headers with a status line are the server's own messages, but a client can store one too.
    let port = world.server.port();
    let mut raw = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut script = "CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_owned();
    for (key, status) in
        [("s404", "404"), ("s503", "503"), ("s100", "100 Idle Heartbeat"), ("s408", "408")]
    {
        let head = format!("NATS/1.0 {status}\r\nX: y\r\n\r\n");
        let sizes = (head.len(), head.len() + "odd".len());
        script += &format!("HPUB {} {} {}\r\n{head}odd\r\n", world.subject(key), sizes.0, sizes.1);
    }
    script += "PING\r\n";
    raw.write_all(script.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("the server has taken the messages", async {
        while !answer.windows(6).any(|bytes| bytes == b"PONG\r\n") {
            assert!(
                raw.read_buf(&mut answer).await.unwrap() > 0,
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    })
    .await;
    theirs.put("after", "2".into()).await.unwrap();
    let stream = world.context.get_stream(world.stream()).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 6, "the server took them");

    let mut watch = ours.watch(WatchScope::All).await.unwrap();
    let state = state(&mut watch).await;
    assert_eq!(
        (state["before"].value.as_ref(), state["after"].value.as_ref()),
        (&b"1"[..], &b"2"[..])
    );
    theirs.put("live", "3".into()).await.unwrap();
    assert_eq!(next_entry(&mut watch).await.key, "live");
    let keys = listed(&ours).await;
    assert!(keys.contains("before") && keys.contains("after") && keys.contains("live"), "{keys:?}");
    let many = ours.get_many(["before", "after", "live", "never"]).await.unwrap();
    assert_eq!(many.iter().flatten().count(), 3);
}
