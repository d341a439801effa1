//! `paused_writer`: the accident, and its prevention.

use shizuku_kv_tests::NatsServer;

use crate::driver::demonstrate;

#[test]
fn paused_writer_loses_sale_without_token_only() {
    for url in ["memory:".to_owned(), NatsServer::shared().url()] {
        let printed = demonstrate("paused_writer", &url).printed();
        let (plain, fenced) = printed.split_once("with the lock's fencing token").unwrap();
        assert!(plain.contains("its write is taken"), "{printed}");
        assert!(plain.contains("  9 are left, as if"), "{printed}");
        assert!(fenced.contains("its write is refused: "), "{printed}");
        assert!(fenced.contains("  7 are left, and"), "{printed}");
        for part in [plain, fenced] {
            assert!(part.contains("does it hold the lock? false"), "{printed}");
        }
    }
}
