//! The snippets of the reference documentation in a folder.

use shizuku_kv_tests::{STAND_IN, folder_urls, rerun};

/// The snippets run in processes of their own, in which a folder replaces the shared server.
#[test]
fn snippets_run_in_a_folder_in_each_mode() {
    for url in folder_urls() {
        let output = rerun("records::seed_docs", "on_nats").env(STAND_IN, &url).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{url}: {text}");
        let path = url.strip_prefix("file:").and_then(|rest| rest.split('?').next()).unwrap();
        let database = std::path::Path::new(path).join("shizuku.redb");
        assert!(database.exists(), "{url} was not used");
    }
}
