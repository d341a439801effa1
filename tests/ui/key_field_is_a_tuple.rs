use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "place.{at}")]
struct Place {
    at: (u32, u32),
}

fn main() {
    let key = PlaceKey { at: (1, 2) };
    let _ = key == PlaceKey::from((1, 2));
}
