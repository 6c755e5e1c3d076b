//! `cargo fuzz run line`: see `millrace_fuzz::line`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::line::run(data));
