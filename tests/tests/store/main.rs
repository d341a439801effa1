//! Handles of stores: their guarantees on every backend, and their errors.

/// Runs each case on every backend, as separate tests.
macro_rules! on_each_backend {
    ($($case:ident,)*) => {
        mod on_memory {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(shizuku_kv::connect("memory:").await.unwrap()).await;
                }
            )*
        }
        mod in_a_folder {
            $(
                #[tokio::test]
                async fn $case() {
                    for url in shizuku_kv_tests::folder_urls() {
                        super::$case(shizuku_kv::connect(&url).await.unwrap()).await;
                    }
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
