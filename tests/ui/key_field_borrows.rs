use shizuku_kv::KeyValue;

#[derive(KeyValue)]
#[kv(key = "user.{name}")]
struct User<'a> {
    name: std::borrow::Cow<'a, str>,
}

fn main() {
    let _ = User { name: "ann".into() }.kv_key();
}
