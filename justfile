# Names for the commands of CONTRIBUTING.md: `just test`, `just test --long`.

# Lists the commands.
default:
    @just --list

# Runs every test; arguments go to scripts/test.
test *arguments:
    scripts/test {{arguments}}

# Checks the style of all tracked files and the order of layers. Needs no server.
tidy:
    cargo test -p shizuku-kv-tests --test tidy

# Formats the workspace.
format:
    cargo fmt --all

# Runs clippy with warnings denied.
lint:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Builds the documentation.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

# Checks the dependencies; arguments go to scripts/deny.
deny *arguments:
    scripts/deny {{arguments}}

# Runs watches under faults; arguments go to scripts/soak.
soak *arguments:
    scripts/soak {{arguments}}

# Runs the fuzz targets; arguments go to scripts/fuzz.
fuzz *arguments:
    scripts/fuzz {{arguments}}

# Tests the tests with mutants of the library; arguments go to scripts/mutants.
mutants *arguments:
    scripts/mutants {{arguments}}

# Counts lines of Rust next to an earlier commit.
lines commit:
    scripts/lines {{commit}}

# Runs the benchmarks; arguments go to them.
bench *arguments:
    cargo bench -p shizuku-kv -- {{arguments}}

# Checks everything that must hold before a change is merged.
ci:
    bash .ci/run
