//! Compares the library with an earlier version of itself; see `run` in this directory.

mod growth;
mod heavy;
mod holds;
mod operations;
mod plain;
mod report;
#[path = "../../../shizuku-kv/benches/support/server.rs"]
mod server;
mod subject;

/// The arguments that `run` passes on.
struct Arguments {
    quick: bool,
    /// Selects the cases whose name contains this text.
    only: String,
    sizes: Option<Vec<usize>>,
}

impl Arguments {
    fn selects(&self, case: &str) -> bool {
        case.contains(&self.only)
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = Arguments { quick: false, only: String::new(), sizes: None };
    let mut program = String::new();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--quick" => arguments.quick = true,
            "--only" => arguments.only = given.next().expect("a part of the name of a case"),
            "--sizes" => {
                let sizes = given.next().expect("sizes");
                let size = |size: &str| size.parse().expect("a number of keys");
                arguments.sizes = Some(sizes.split(',').map(size).collect());
            }
            _ => program = argument,
        }
    }
    // A task of its own, because services run in tasks.
    let task = match program.as_str() {
        "--growth" => tokio::spawn(growth::measure(arguments)),
        "--holds" => tokio::spawn(holds::measure(arguments)),
        _ => tokio::spawn(operations::measure(arguments)),
    };
    task.await.expect("the benchmark");
}
