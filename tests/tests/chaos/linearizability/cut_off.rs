//! A deliberate violation of linearizability: a leader that is cut off from its followers but not
//! from its clients.

use std::time::{Duration, Instant};

use shizuku_kv::{KvError, KvResult, ReadConsistency, Store, StoreConfig, VersionToken, connect};
use shizuku_kv_tests::{NatsCluster, NatsServer, TcpProxy};

use crate::linearizability::check::{Question, Verdict, judge};
use crate::linearizability::history::{End, History};
use crate::linearizability::register::{Answer, Known, Operation};

const BUCKET: &str = "cut-off";

/// The leader accepts a write that it cannot replicate, and rejects others because of it. The other
/// nodes elect a leader, which still has the value that both writes expected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten seconds, most of it an election: scripts/test --long"]
async fn leader_cut_off_rejects_because_of_lost_writes() {
    if !NatsServer::shared().is_at_least(2, 11) {
        println!("not with nats-server {}", NatsServer::shared().version());
        return;
    }
    let cluster = NatsCluster::start().await;
    let store = open(&cluster.url()).await;
    cluster.wait_until_healthy(BUCKET).await;
    let leader = cluster.leader_of(BUCKET).await;
    let old = cluster.node(leader).url();
    let new = cluster.node((leader + 1) % 3).url();
    let [one, two, three] = [open(&old).await, open(&old).await, open(&new).await];

    let (mut history, start) = (History::default(), Instant::now());
    let begin = |history: &mut History, client, operation| {
        history.begin(client, operation, start.elapsed())
    };
    let call = begin(&mut history, 0, Operation::Create { write: 0 });
    let version = store.create("key", "0").await.unwrap();
    history.end(call, told(&Ok(version)), start.elapsed());
    let expected = Known { version: version.as_u64().unwrap(), write: 0 };
    let swap = |write| Operation::Swap { expected, write };

    cluster.routes_of(leader).for_each(TcpProxy::stall);
    let stuck = begin(&mut history, 1, swap(1));
    let sticking = tokio::spawn(async move {
        one.with_deadline(Duration::from_secs(4)).update("key", "1", version).await
    });
    // The first write must be there first.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rejected = begin(&mut history, 2, swap(2));
    let rejection = two.with_deadline(Duration::from_secs(3)).update("key", "2", version).await;
    history.end(rejected, told(&rejection), start.elapsed());
    let outcome = sticking.await.unwrap();
    history.end(stuck, told(&outcome), start.elapsed());

    // The other nodes elect a leader.
    let answer = loop {
        let call = begin(&mut history, 3, swap(3));
        let answer = three.update("key", "3", version).await;
        history.end(call, told(&answer), start.elapsed());
        if answer.is_ok() || start.elapsed() > Duration::from_secs(60) {
            break answer;
        }
    };
    cluster.routes_of(leader).for_each(TcpProxy::flow);
    println!("{history}");
    assert!(matches!(rejection, Err(KvError::RevisionMismatch { .. })), "{rejection:?}");
    assert!(answer.is_ok(), "{answer:?}");
    // Nothing was written twice and nothing was lost. The mismatch comes from a write that never
    // took effect.
    assert_eq!(judge(&history, Question::LEAST), Verdict::Linearizable);
    assert_eq!(judge(&history, Question::MISMATCHES), Verdict::Not);
}

async fn open(url: &str) -> Store {
    let config = StoreConfig::new().replicas(3).consistency(ReadConsistency::Leader);
    let connection = connect(url).await.expect("a connection");
    connection.store_with_config(BUCKET, config).await.expect("a bucket")
}

fn told(answer: &KvResult<VersionToken>) -> End {
    match answer {
        Ok(version) => End::Told(Answer::Written(version.as_u64().expect("a number"))),
        Err(KvError::RevisionMismatch { .. }) => End::Told(Answer::Mismatch),
        Err(KvError::Timeout { .. } | KvError::Unavailable { .. }) => End::NotDone,
        Err(_) => End::Open,
    }
}
