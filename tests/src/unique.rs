use std::sync::atomic::{AtomicU64, Ordering};

/// Returns a name that no other call in this process has returned, nor one in another running
/// process. It is `prefix`, the process id and a count, joined by `-`.
///
/// It is a valid bucket name and a valid key token if `prefix` is.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{count}", std::process::id())
}
