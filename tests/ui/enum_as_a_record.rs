use serde::{Deserialize, Serialize};
use shizuku_kv::{KeyValue, Store};

#[derive(Serialize, Deserialize, KeyValue)]
#[kv(key = "shape.{id}", codec = json)]
enum Shape {
    Circle { id: u64 },
    Square { id: u64 },
}

async fn write(store: &Store) {
    let _ = Shape::Circle { id: 7 }.write_to_anyway(store).await;
}

fn main() {
    let _ = (Shape::Square { id: 7 }, write);
}
