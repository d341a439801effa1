//! Handles of stores: their guarantees on both backends, and their errors.

/// Runs each case on both backends, as separate tests.
macro_rules! on_both_backends {
    ($($case:ident,)*) => {
        mod on_memory {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(shizuku_kv::connect("memory:").await.unwrap()).await;
                }
            )*
        }
        mod on_nats {
            $(
                #[tokio::test]
                async fn $case() {
                    let server = shizuku_kv_tests::NatsServer::shared();
                    super::$case(shizuku_kv::connect(&server.url()).await.unwrap()).await;
                }
            )*
        }
    };
}

mod bad_input;
mod capabilities;
mod faulty_store;
mod fenced_writes;
mod handle;
mod lost_acknowledgements;

mod operation_names;
mod proxied;
mod shared_watch;
