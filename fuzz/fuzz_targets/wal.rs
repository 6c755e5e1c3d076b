//! `cargo fuzz run wal`: see `millrace_fuzz::wal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::wal::run(data));
