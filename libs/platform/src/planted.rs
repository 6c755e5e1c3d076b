//! Bugs that a crash suite plants to prove that it catches them.
//!
//! Owns: the switch, made in each crate that plants bugs by [`planted_bugs!`](crate::planted_bugs).
//! In every build but that crate's own tests the switch is a constant `false`, and the planted
//! code is not compiled in.

/// Makes an enum of bugs, `with` (runs a closure with a bug planted on this thread; simulation
/// runs on one thread) and `planted` (whether a bug is planted here and now) in the module where
/// it is called.
#[macro_export]
macro_rules! planted_bugs {
    ($(#[$attribute:meta])* $visibility:vis enum $bug:ident { $($body:tt)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $bug { $($body)* }

        #[cfg(test)]
        std::thread_local! {
            static PLANTED: std::cell::Cell<Option<$bug>> = const { std::cell::Cell::new(None) };
        }

        /// Runs `f` with a bug, or none, planted on this thread.
        #[cfg(test)]
        $visibility fn with<T>(bug: impl Into<Option<$bug>>, f: impl FnOnce() -> T) -> T {
            struct Clear;
            impl Drop for Clear {
                fn drop(&mut self) {
                    PLANTED.with(|p| p.set(None));
                }
            }
            PLANTED.with(|p| p.set(bug.into()));
            let _clear = Clear;
            f()
        }

        /// Whether a bug is planted here and now.
        #[cfg(test)]
        $visibility fn planted(bug: $bug) -> bool {
            PLANTED.with(std::cell::Cell::get) == Some(bug)
        }

        /// Never, outside tests.
        #[cfg(not(test))]
        $visibility const fn planted(_bug: $bug) -> bool {
            false
        }
    };
}
