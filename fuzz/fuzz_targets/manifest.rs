//! `cargo fuzz run manifest`: see `millrace_fuzz::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::manifest::run(data));
