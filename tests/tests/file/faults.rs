//! Paths and files that cannot be used: each is an error that names the path and the way out, and
//! nothing is replaced.

use std::fs;
use std::path::Path;

use shizuku_kv::{Connection, FileConnection, KvError, WatchScope, connect};
use tempfile::tempdir;

use crate::process::Process;

fn url(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// Returns the error of connecting, which names the path and has a way out.
async fn error(path: &Path, options: &str) -> KvError {
    let error = connect(&format!("{}{options}", url(path))).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "no path: {text}");
    assert!(text.contains(';'), "no way out: {text}");
    error
}

#[tokio::test]
async fn path_without_a_folder_of_ours_is_rejected() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "content").unwrap();
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/data.txt"), "content").unwrap();
    for name in ["file", "foreign"] {
        let error = error(&path(name), "").await;
        assert!(matches!(error, KvError::InvalidUrl { .. }), "{error}");
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "content");
    assert_eq!(fs::read_dir(path("foreign")).unwrap().count(), 1);
    assert!(matches!(error(&path("no/parent"), "").await, KvError::Unavailable { .. }));
    for options in ["?read_only=true"] {
        fs::create_dir_all(path("empty")).unwrap();
        assert!(matches!(error(&path("empty"), options).await, KvError::InvalidUrl { .. }));
        assert!(matches!(error(&path("absent"), options).await, KvError::InvalidUrl { .. }));
        assert!(!path("absent").exists());
    }
}

#[cfg(unix)]
#[tokio::test]
async fn special_files_are_rejected() {
    use std::process::Command;

    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink(path("nowhere"), path("dangling")).unwrap();
    assert!(matches!(error(&path("dangling"), "").await, KvError::InvalidUrl { .. }));
    assert!(!path("nowhere").exists());
    assert!(matches!(error(Path::new("/dev/null"), "").await, KvError::InvalidUrl { .. }));
    for name in ["pipe", "inside/shizuku.redb"] {
        fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        assert!(Command::new("mkfifo").arg(path(name)).status().unwrap().success());
    }
    assert!(matches!(error(&path("pipe"), "").await, KvError::InvalidUrl { .. }));
    assert!(matches!(error(&path("inside"), "").await, KvError::InvalidUrl { .. }));
    // A link to a folder is the folder.
    fs::create_dir(path("real")).unwrap();
    std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
    connect(&url(&path("link"))).await.unwrap().store("config").await.unwrap();
    assert!(path("real/shizuku.redb").exists());
}

#[tokio::test]
async fn foreign_and_damaged_databases_are_rejected_unchanged() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, content) in [("text", &b"not a database"[..]), ("zeros", &[0; 8192])] {
        fs::create_dir(path(name)).unwrap();
        let file = path(name).join("shizuku.redb");
        fs::write(&file, content).unwrap();
        for options in ["", "?read_only=true", "?shared=true", "?exclusive=true"] {
            error(&path(name), options).await;
            assert_eq!(fs::read(&file).unwrap(), content, "{name}{options}");
        }
    }
    // Cut in half.
    let connection = connect(&url(&path("cut"))).await.unwrap();
    let store = connection.store("config").await.unwrap();
    for number in 0..100 {
        store.put(format!("key.{number}"), vec![1; 2000]).await.unwrap();
    }
    connection.shutdown().await.unwrap();
    let file = path("cut").join("shizuku.redb");
    let content = fs::read(&file).unwrap();
    fs::write(&file, &content[..content.len() / 2]).unwrap();
    error(&path("cut"), "").await;
}

#[cfg(unix)]
#[tokio::test]
async fn permissions_are_those_of_the_owner_or_as_set() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempdir().unwrap();
    for (name, options, file_mode, folder_mode) in
        [("own", "", 0o600, 0o700), ("group", "?mode=0660", 0o660, 0o770)]
    {
        let path = folder.path().join(name);
        let connection = FileConnection::open(&format!("{}{options}", url(&path))).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path.join("owner.json")), file_mode);
        let copy = folder.path().join(format!("{name}-copy"));
        connection.backup(&copy).await.unwrap();
        connection.shutdown().await.unwrap();
        for path in [path, copy] {
            assert_eq!(mode(&path), folder_mode);
            assert_eq!(mode(&path.join("shizuku.redb")), file_mode);
        }
    }
}

#[tokio::test]
async fn deleted_folder_is_noticed_by_every_write() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    let connection = connect(&url(&path)).await.unwrap();
    let store = connection.store("config").await.unwrap();
    store.put("key", "value").await.unwrap();
    fs::remove_dir_all(&path).unwrap();
    let error = store.put("key", "other").await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, KvError::Backend { .. }), "{text}");
    assert!(text.contains("removed") && text.contains("data"), "{text}");
    assert!(connection.health().await.is_err());
    assert!(!path.exists());
    connection.shutdown().await.unwrap();
}

/// The limit on the size of files stands for a disk without room.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_leaves_the_handle_usable() {
    for options in ["", "?exclusive=true", "?shared=true"] {
        let folder = tempdir().unwrap();
        let url = format!("{}{options}", url(&folder.path().join("data")));
        let (mut process, first) = Process::with_limit(&url, 2048);
        assert_eq!(first, "ready");
        let mut written = 0;
        let error = loop {
            let answer = process.ask(&format!("put_large key.{written}"));
            if answer.starts_with("error") {
                break answer;
            }
            written += 1;
        };
        assert!(written > 0, "{error}");
        assert!(error.contains("shizuku.redb") && error.contains("full"), "{options}: {error}");
        // Reads work, and it stays full.
        assert_eq!(process.ask("get key.0").len(), 200_000);
        let again = process.ask(&format!("put_large key.{written}"));
        assert!(again.starts_with("error"), "{again}");
        assert_eq!(process.ask(&format!("get key.{written}")), "none");
        process.raise_limit();
        process.ask(&format!("put_large key.{written}")).parse::<u64>().unwrap();
        for number in 0..=written {
            assert_eq!(process.ask(&format!("get key.{number}")).len(), 200_000);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_is_consistent_while_the_store_is_written() {
    let folder = tempdir().unwrap();
    let connection = FileConnection::open(&url(&folder.path().join("data"))).await.unwrap();
    let store = connection.store("config").await.unwrap();
    for number in 0..200 {
        store.put(format!("other.{number}"), vec![1; 1000]).await.unwrap();
    }
    store.put("first", "0").await.unwrap();
    let watch = store.watch(WatchScope::key("first").unwrap()).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let cursor = watch.cursor().unwrap();
    let writes = {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 1_u64.. {
                // The second is never ahead of the first.
                store.put("first", number.to_string()).await.unwrap();
                store.put("second", number.to_string()).await.unwrap();
            }
        })
    };
    let copy = folder.path().join("copy");
    connection.backup(&copy).await.unwrap();
    writes.abort();
    let occupied = connection.backup(&copy).await.unwrap_err();
    assert!(matches!(occupied, KvError::InvalidConfig { .. }), "{occupied}");
    let restored = connect(&url(&copy)).await.unwrap().store("config").await.unwrap();
    let number = async |key: &str| match restored.get(key).await.unwrap() {
        Some(entry) => String::from_utf8(entry.value.to_vec()).unwrap().parse().unwrap(),
        None => 0_u64,
    };
    let (first, second) = (number("first").await, number("second").await);
    assert!(first == second || first == second + 1, "{first} {second}");
    assert_eq!(restored.keys(WatchScope::prefix("other.")).try_collect().await.unwrap().len(), 200);
    // The copy is another store.
    let resumed = restored.watch_from(WatchScope::key("first").unwrap(), cursor).await;
    assert!(matches!(resumed.err(), Some(KvError::CursorExpired { .. })));
    let version = restored.put("first", "next").await.unwrap();
    assert!(version.as_u64() > Some(201));
}

#[tokio::test]
async fn second_connection_of_a_process_is_rejected() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("data");
    let connection = FileConnection::open(&url(&path)).await.unwrap();
    let text = error(&path, "").await.to_string();
    assert!(text.contains("the connection that this process has"), "{text}");
    connection.shutdown().await.unwrap();
    connect(&url(&path)).await.unwrap();
}
