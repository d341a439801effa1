use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{id}")]
struct User<T> {
    id: T,
}

fn main() {
    let _ = User { id: 7 }.kv_key();
}
