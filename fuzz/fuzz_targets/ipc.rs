//! `cargo fuzz run ipc`: see `millrace_fuzz::ipc`.
//!
//! The product runs Arrow's decoder behind a fence that turns its panics into errors; libFuzzer's
//! own hook would end the run before the fence sees them. With this hook a panic that is not
//! caught still ends it.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(|l| l.file()).unwrap_or_default();
            if !place.contains("/arrow-") {
                eprintln!("{panic}");
            }
        }));
    },
    |data: &[u8]| millrace_fuzz::ipc::run(data)
);
