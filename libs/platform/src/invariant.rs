//! Numbered invariants: the same id in the check, the simulator's oracle, the counter and the
//! promise table.
//!
//! Owns: what happens when an invariant does not hold: a panic in debug builds and tests; in
//! release builds a counter, an error log and a typed error that halts the caller's component.

/// An invariant did not hold; the component that found it must stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "internal invariant {id} does not hold: {detail}; the affected component has stopped, nothing acknowledged is touched; restart the server and report this"
)]
pub struct Broken {
    /// The invariant's id, for instance `D2_WATERMARK_NEVER_BACK`.
    pub id: &'static str,
    /// The values that broke it.
    pub detail: String,
}

/// Called by [`crate::invariant!`]; not for direct use.
#[expect(clippy::panic, reason = "a broken invariant must stop a test at once")]
pub fn broken(id: &'static str, detail: String) -> Broken {
    metrics::counter!(crate::metric::Metric::InvariantBroken.name(), "id" => id).increment(1);
    tracing::error!(id, detail, "invariant does not hold");
    if cfg!(debug_assertions) {
        panic!("invariant {id} does not hold: {detail}");
    }
    Broken { id, detail }
}

/// `invariant!(D2_WATERMARK_NEVER_BACK, next >= prev, prev, next)?;` yields `Result<(), Broken>`.
#[macro_export]
macro_rules! invariant {
    ($id:ident, $holds:expr $(, $value:expr)* $(,)?) => {
        if $holds {
            Ok(())
        } else {
            let mut detail = String::from(stringify!($holds));
            $( detail.push_str(&format!(", {} = {:?}", stringify!($value), $value)); )*
            Err($crate::invariant::broken(stringify!($id), detail))
        }
    };
}
