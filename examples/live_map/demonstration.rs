//! The demonstration in one process: a router keeps picking while instances come, drain, break and
//! go.

use std::time::Duration;
use std::{fmt, process};

use shizuku_kv::{Connection, KeyValue, LiveMapChanges, LiveRead, Store};
use tokio::time::timeout;

use crate::{Instance, InstanceKey, Outcome, Router, changed, refused};

pub(crate) async fn run(connection: &dyn Connection, scheme: &str) -> Outcome {
    // A unique name, so that concurrent runs do not interfere.
    let name = format!("live-map-{}", process::id());
    let store = connection.store(&name).await?;
    say("open", format_args!("store {name} on {scheme}"));

    let told = timeout(Duration::from_secs(30), tell(&store)).await;

    // Cleans up even if the demonstration ended early.
    let deleted = connection.delete_store(&name).await;
    told.map_err(|_| "a change has not come")??;
    deleted?;
    say("close", "the store is deleted");
    Ok(())
}

async fn tell(store: &Store) -> Outcome {
    let router = Router::new(Instance::live_map(store).await?);
    let mut changes = router.instances.changes();
    for (name, id, address) in
        [("web", 1, "10.0.0.1:80"), ("web", 2, "10.0.0.2:80"), ("db", 1, "10.0.1.1:5432")]
    {
        let address = address.parse()?;
        Instance { name: name.to_owned(), id, address, draining: false }
            .write_to_anyway(store)
            .await?;
        next(&mut changes).await?;
    }
    pick(&router)?;
    pick(&router)?;

    Instance::drain(store, InstanceKey { name: "web".to_owned(), id: 1 }).await?;
    next(&mut changes).await?;
    pick(&router)?;
    pick(&router)?;

    // Another program does not know the type. The last good instance stays current.
    let statuses = router.instances.statuses();
    let bad = r#"{"address": "nowhere"}"#;
    say("break", format_args!("{bad}: version {}", store.put("service.web.2", bad).await?));
    while router.instances.status().rejected == 0 {
        statuses.next().await.ok_or("nothing follows any more")?;
    }
    for rejection in router.instances.rejections() {
        say("refuse", refused(&router.instances, &rejection));
    }
    pick(&router)?;

    Instance::delete_anyway(store, InstanceKey { name: "web".to_owned(), id: 2 }).await?;
    next(&mut changes).await?;
    let nobody = router.pick("web").err().ok_or("an instance that drains was picked")?;
    say("pick", nobody);
    Ok(())
}

/// Waits for the change, because a write arrives soon, but not at once.
async fn next(changes: &mut LiveMapChanges<InstanceKey, Instance>) -> Outcome {
    say("change", changed(&changes.next().await.ok_or("nothing follows any more")?));
    Ok(())
}

fn pick(router: &Router) -> Outcome {
    say("pick", router.pick("web")?.address);
    Ok(())
}

fn say(what: &str, text: impl fmt::Display) {
    println!("{what:<8}{text}");
}
