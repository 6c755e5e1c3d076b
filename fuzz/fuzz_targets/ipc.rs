//! `cargo fuzz run ipc`: see `millrace_fuzz::ipc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::ipc::run(data));
