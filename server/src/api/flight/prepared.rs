//! Prepared statements of Flight SQL clients.
//!
//! Owns: the handles. One is 128 random bits and is looked up together with the tenant and the
//! token that made it, so that for anybody else there is nothing under it.
//! Never: grows without bound: per token 256 statements and 4 MiB of text and values, where the
//! one that was not used for longest makes room, and an hour without use ends any.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use millrace_platform::{
    clock::Clock,
    entropy::{Entropy, random_bytes},
    map::Map,
};
use millrace_protocol::ids::TenantId;
use millrace_query::Params;

/// Statements of one token.
const STATEMENTS_MAX: usize = 256;
/// Bytes of text and values of one token's statements.
const BYTES_MAX: usize = 4 << 20;
/// A statement that nobody used for so long is gone.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// Whose a statement is: tenant and token.
pub(super) type Owner = (TenantId, String);
type Handle = [u8; 16];

/// One statement with the values that were bound last.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) database: String,
    pub(super) sql: String,
    pub(super) params: Params,
}

impl Statement {
    fn bytes(&self) -> usize {
        let values = match &self.params {
            Params::Typed(values) => values.bytes(),
            _ => 0,
        };
        self.sql.len() + self.database.len() + values
    }
}

#[derive(Debug)]
struct Kept {
    handle: Handle,
    statement: Statement,
    used: Duration,
}

/// See the module head.
#[derive(Debug)]
pub(crate) struct Prepared {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Of each owner the statements, the one used last at the end.
    owners: Mutex<Map<Owner, Vec<Kept>>>,
}

impl Prepared {
    pub(crate) fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy, owners: Mutex::default() }
    }

    /// Keeps a statement; its handle.
    pub(super) fn keep(&self, owner: Owner, statement: Statement) -> Handle {
        let handle = random_bytes(self.entropy.as_ref());
        let used = self.clock.monotonic();
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, kept| {
            kept.retain(|k| used.saturating_sub(k.used) < IDLE_MAX);
            !kept.is_empty()
        });
        let own = owners.entry(owner).or_default();
        own.push(Kept { handle, statement, used });
        shrink(own);
        handle
    }

    /// The statement under a handle, which counts as used.
    pub(super) fn get(&self, owner: &Owner, handle: &[u8]) -> Option<Statement> {
        self.with(owner, handle, |kept| kept.statement.clone())
    }

    /// Binds values; whether there is such a statement.
    pub(super) fn bind(&self, owner: &Owner, handle: &[u8], params: Params) -> bool {
        self.with(owner, handle, |kept| kept.statement.params = params).is_some()
    }

    /// Forgets a statement, if there is one.
    pub(super) fn close(&self, owner: &Owner, handle: &[u8]) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = owners.get_mut(owner) {
            own.retain(|k| k.handle != handle);
        }
    }

    fn with<T>(&self, owner: &Owner, handle: &[u8], f: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        let now = self.clock.monotonic();
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let own = owners.get_mut(owner)?;
        let at = own.iter().position(|k| k.handle == handle)?;
        let mut kept = own.remove(at);
        if now.saturating_sub(kept.used) >= IDLE_MAX {
            return None;
        }
        kept.used = now;
        let out = f(&mut kept);
        own.push(kept);
        shrink(own);
        Some(out)
    }
}

/// Lets go of the statements that were not used for longest, until all bounds hold.
fn shrink(own: &mut Vec<Kept>) {
    let mut bytes: usize = own.iter().map(|k| k.statement.bytes()).sum();
    let mut go = own.len().saturating_sub(STATEMENTS_MAX);
    bytes -= own.iter().take(go).map(|k| k.statement.bytes()).sum::<usize>();
    while bytes > BYTES_MAX && go + 1 < own.len() {
        bytes -= own.get(go).map_or(0, |k| k.statement.bytes());
        go += 1;
    }
    own.drain(..go);
}

#[cfg(test)]
mod tests {
    use millrace_platform::sim::{SimClock, SimEntropy};

    use super::*;

    fn store() -> (SimClock, Prepared) {
        let clock = SimClock::at(0);
        let store = Prepared::new(Arc::new(clock.clone()), Arc::new(SimEntropy::seeded(1)));
        (clock, store)
    }

    fn owner(tenant: u8, token: &str) -> Owner {
        (TenantId([tenant; 16]), token.to_owned())
    }

    fn statement(bytes: usize) -> Statement {
        Statement { database: String::new(), sql: "x".repeat(bytes), params: Params::None }
    }

    #[test]
    fn a1_a_handle_is_nothing_to_another_tenant_or_token() {
        let (_, store) = store();
        let handle = store.keep(owner(1, "a"), statement(1));
        assert!(store.get(&owner(1, "a"), &handle).is_some());
        for other in [owner(2, "a"), owner(1, "b")] {
            assert!(store.get(&other, &handle).is_none());
            assert!(!store.bind(&other, &handle, Params::None));
            store.close(&other, &handle);
        }
        assert!(store.get(&owner(1, "a"), &handle).is_some());
        store.close(&owner(1, "a"), &handle);
        assert!(store.get(&owner(1, "a"), &handle).is_none());
        assert!(store.get(&owner(1, "a"), b"").is_none());
    }

    #[test]
    fn a_statement_ends_an_hour_after_its_last_use() {
        let (clock, store) = store();
        let handle = store.keep(owner(1, "a"), statement(1));
        for _ in 0..3 {
            clock.advance(Duration::from_secs(3599));
            assert!(store.get(&owner(1, "a"), &handle).is_some());
        }
        clock.advance(Duration::from_secs(3600));
        assert!(store.get(&owner(1, "a"), &handle).is_none());
        store.keep(owner(2, "b"), statement(1));
        assert_eq!(store.owners.lock().unwrap().len(), 1, "who has nothing is not kept");
    }

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let (_, store) = store();
        let me = owner(1, "a");
        let first = store.keep(me.clone(), statement(1));
        let second = store.keep(me.clone(), statement(1));
        for _ in 0..STATEMENTS_MAX - 2 {
            store.keep(me.clone(), statement(1));
        }
        assert!(store.get(&me, &first).is_some());
        store.keep(me.clone(), statement(1));
        assert!(store.get(&me, &first).is_some() && store.get(&me, &second).is_none());
        let large = store.keep(me.clone(), statement(BYTES_MAX + 1));
        assert!(store.get(&me, &large).is_some(), "the newest is kept");
        assert_eq!(store.owners.lock().unwrap()[&me].len(), 1);
    }
}
