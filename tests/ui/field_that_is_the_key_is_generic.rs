use shizuku_kv::KeyValue;

#[derive(KeyValue)]
struct User<T> {
    #[kv(key)]
    id: T,
}

fn main() {}
