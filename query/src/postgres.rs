//! A session as PostgreSQL's clients expect one: `pg_catalog`, its names and its functions.
//!
//! Owns: what such a session has beyond any other. Clients ask a server what it is in SQL that no
//! other engine plans; it is rewritten on the syntax tree, before the guards weigh it, into SQL
//! over a few tables that are made of the tenant's own snapshot when they are read.
//! Never: shows more than the tenant's own catalogue; changes what a statement over the tenant's
//! tables means.

mod catalog;
mod empty;
mod functions;
mod rewrite;
mod spec;
pub mod types;

use std::sync::Arc;

use datafusion::{
    catalog::information_schema::INFORMATION_SCHEMA, error::Result, prelude::SessionContext,
    sql::parser::Statement,
};
use millrace_storage::TenantSnapshot;

use self::catalog::{Facts, Pages};
pub use self::catalog::{setting, settings};
use crate::session;

/// The schema's name.
const PG_CATALOG: &str = "pg_catalog";
/// The version that is told: the features of `pg_catalog` follow it.
pub const SERVER_VERSION: &str = "15.0";
/// The same as a number.
pub const SERVER_VERSION_NUMBER: &str = "150000";

/// Who is connected, as `current_user` and its kin tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user that the client named.
    pub user: String,
    /// The number of the connection.
    pub pid: i32,
}

/// One statement's session.
pub(crate) struct Dialect {
    facts: Arc<Facts>,
}

impl Dialect {
    pub(crate) fn new(caller: &Caller, snapshot: &Arc<TenantSnapshot>, database: &str) -> Self {
        Self { facts: Arc::new(Facts::new(caller.clone(), Arc::clone(snapshot), database)) }
    }

    /// Turns what only PostgreSQL has into what is here.
    pub(crate) fn rewrite(&self, statement: &mut Statement) {
        rewrite::rewrite(statement, &self.facts);
    }

    /// Adds `pg_catalog`, and the information schema with PostgreSQL's names of types.
    pub(crate) fn register(&self, context: &SessionContext) -> Result<()> {
        let Some(catalog) = context.catalog(session::CATALOG) else { return Ok(()) };
        for (name, pages) in
            [(PG_CATALOG, Pages::Catalog), (INFORMATION_SCHEMA, Pages::Information)]
        {
            catalog.register_schema(name, Arc::new(pages.schema(&self.facts)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
