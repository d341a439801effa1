#[derive(KeyValue)]
struct Job {
    #[kv(key)]
    id: String,
    runs: u32,
}
