#[kv(key = "config.database")]
struct Config;

fn main() {}
