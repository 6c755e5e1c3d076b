//! The schema `system`: what a tenant may see of its own store.
//!
//! Owns: which views there are and how one becomes rows when a query names it. Each view is a file
//! of its own with its columns and units. Never: takes from anything but the caller's own snapshot
//! and the caller's own counters, so that there is nothing to filter; keeps rows between queries.

mod columns;
mod compactions;
mod files;
mod ingest;
mod retention;
mod streams;
mod tables;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    catalog::{MemTable, SchemaProvider, Session, TableProvider},
    datasource::TableType,
    error::Result,
    logical_expr::Expr,
    physical_plan::ExecutionPlan,
};
use millrace_protocol::ids::TenantId;
use millrace_storage::{Engine, TenantSnapshot};

/// The schema's name; no database can have it.
pub(crate) const SYSTEM: &str = "system";

/// Where the rows come from: one tenant's picture and counters.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) snapshot: Arc<TenantSnapshot>,
    pub(crate) storage: Arc<Engine>,
    pub(crate) tenant: TenantId,
    /// Now, ns since the Unix epoch; ages count from it.
    pub(crate) now_ns: i64,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// One view.
#[derive(Debug)]
struct View {
    name: &'static str,
    schema: fn() -> SchemaRef,
    rows: fn(&Sources) -> Result<RecordBatch>,
}

/// All views, by name.
const VIEWS: [View; 6] = [
    View { name: "compactions", schema: compactions::schema, rows: compactions::rows },
    View { name: "files", schema: files::schema, rows: files::rows },
    View { name: "ingest", schema: ingest::schema, rows: ingest::rows },
    View { name: "retention", schema: retention::schema, rows: retention::rows },
    View { name: "streams", schema: streams::schema, rows: streams::rows },
    View { name: "tables", schema: tables::schema, rows: tables::rows },
];

/// See the module head.
#[derive(Debug)]
pub(crate) struct System(pub(crate) Sources);

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        VIEWS.iter().map(|v| v.name.to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let view = VIEWS.iter().find(|v| v.name == name);
        Ok(view.map(|view| Arc::new(SystemView { view, sources: self.0.clone() }) as _))
    }

    fn table_exist(&self, name: &str) -> bool {
        VIEWS.iter().any(|v| v.name == name)
    }
}

/// A view as DataFusion sees it; its rows are made when it is scanned.
#[derive(Debug)]
struct SystemView {
    view: &'static View,
    sources: Sources,
}

#[async_trait]
impl TableProvider for SystemView {
    fn schema(&self) -> SchemaRef {
        (self.view.schema)()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = (self.view.rows)(&self.sources)?;
        let table = MemTable::try_new(self.schema(), vec![vec![rows]])?;
        table.scan(state, projection, filters, limit).await
    }
}

#[cfg(test)]
mod tests;
