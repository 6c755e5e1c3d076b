//! `cargo fuzz run sealed`: see `millrace_fuzz::sealed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millrace_fuzz::sealed::run(data));
