use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "reading.{sensor}.{at}")]
struct Reading {
    sensor: String,
    at: f64,
}

fn main() {
    let key = ReadingKey { sensor: "a".to_owned(), at: 0.5 };
    let _ = (ReadingKey::from(("a", 0.5)), ReadingKey::scope_sensor("a"), key);
}
