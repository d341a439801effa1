//! `list_stores` names exactly the stores that `store` opens.

use shizuku_kv::connect;
use shizuku_kv_tests::{NatsServer, unique};

use super::{bucket, create_stream};

#[tokio::test]
async fn every_listed_store_opens_over_several_pages() {
    let server = NatsServer::start();
    let connection = connect(&server.url()).await.unwrap();
    // The server returns pages of 256 streams.
    let (mut expected, long) = (Vec::new(), "x".repeat(65));
    for number in 0..300 {
        let name = unique("listed");
        create_stream(&server, &bucket(&name)).await;
        if number % 10 == 0 {
            let mut foreign = bucket(&unique("foreign"));
            foreign["no_ack"] = true.into();
            create_stream(&server, &foreign).await;
        }
        expected.push(name);
    }
    create_stream(&server, &bucket(&long)).await;
    let mut listed = connection.list_stores().try_collect().await.unwrap();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    for name in listed.iter().step_by(37) {
        connection.store(name).await.unwrap();
    }
    assert!(connection.store(&long).await.is_err());
}
