# `just` lists the commands; `cargo xtask` does the work, so that no check exists only here.

# List the commands.
default:
    @just --list

# Server, tenant, forwarder and an answer on the screen.
demo *args:
    cargo run --release -- demo {{args}}

# Every suite, after installing what they need.
test:
    cargo xtask test

# Format, tidy, layers, lints, unit tests of the crates without DataFusion.
quick:
    cargo xtask quick

# Every fuzz target, 60 seconds each; `just fuzz --seconds 600 wal` for more of one.
fuzz *args:
    cargo xtask fuzz {{args}}

# Crash simulation on a simulated disk.
sim *filter:
    cargo nextest run --workspace -E 'test(sim::) or package(millrace-sim)' {{filter}}

# Storage's random schedules on all cores, for 120 minutes unless told otherwise.
soak *args:
    cargo xtask soak {{args}}

# The real binaries, driven from outside.
e2e *filter:
    cargo build --workspace && cargo nextest run --workspace -E 'package(millrace-tests)' {{filter}}

# Unmodified Python clients and curl.
clients:
    cargo build --workspace && cargo xtask clients

# Accept new snapshots.
bless:
    UPDATE_EXPECT=1 cargo test --workspace --lib

# One criterion bench: parse, seal, group_commit, flush, scan.
bench stage:
    cargo bench -p millrace-benches --bench {{stage}}

# The whole system under load; ends with one JSON line.
tsbs *args:
    cargo run --release -p millrace-benches -- tsbs {{args}}

# Documentation, warnings denied.
doc:
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps

# Everything that continuous integration does.
ci:
    .ci/run
