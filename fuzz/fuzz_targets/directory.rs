//! `cargo fuzz run directory`: see `millrace_fuzz::directory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::directory::run(data));
