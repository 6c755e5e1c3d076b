//! One table of one snapshot as DataFusion sees it.
//!
//! Owns: the column order (tags, `time`, fields), pushdown of projection, filters and limit.
//! Never: blocks the writer; reads another tenant's file.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::{Session, TableProvider},
    datasource::TableType,
    error::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown},
    physical_plan::ExecutionPlan,
};
use millrace_storage::{ColumnRef, GROUP_ROWS, ScanRequest, TableSnapshot};

use crate::{
    error::QueryError,
    prune::{self, Kind},
    scan::TelemetryScanExec,
};

/// See the module head.
#[derive(Debug)]
pub(crate) struct SnapshotTable {
    table: Arc<TableSnapshot>,
    columns: Vec<ColumnRef>,
    schema: SchemaRef,
}

impl SnapshotTable {
    pub(crate) fn new(table: Arc<TableSnapshot>) -> Self {
        let tags = (0..table.schema.tags.len()).map(ColumnRef::Tag);
        let fields = (0..table.schema.fields.len()).map(ColumnRef::Field);
        let columns: Vec<ColumnRef> = tags.chain([ColumnRef::Time]).chain(fields).collect();
        let schema = table.arrow_schema(&columns);
        Self { table, columns, schema }
    }
}

#[async_trait]
impl TableProvider for SnapshotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|f| match prune::kind(f, &self.table) {
                Kind::Time | Kind::Tags => TableProviderFilterPushDown::Exact,
                Kind::Other => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns: Vec<ColumnRef> = match projection {
            Some(places) => places.iter().filter_map(|p| self.columns.get(*p)).copied().collect(),
            None => self.columns.clone(),
        };
        let request = ScanRequest {
            columns,
            time: prune::time_of(filters),
            series: prune::series_of(filters, &self.table, state)?,
            partitions: state.config().target_partitions(),
            group_rows: GROUP_ROWS,
            limit,
        };
        let time = request.time.clone();
        let scan = self.table.scan(request).await.map_err(read_error)?;
        Ok(Arc::new(TelemetryScanExec::new(&self.table.schema.name, time, limit, scan)))
    }
}

/// A reader's error as a query's: what the operator should know goes to the log.
pub(crate) fn read_error(e: millrace_storage::ReadError) -> DataFusionError {
    use millrace_storage::ReadError;
    let error = match e {
        ReadError::TenantGone => QueryError::Unavailable(e.to_string()),
        other => {
            tracing::error!(error = %other, "reading for a query failed");
            QueryError::Unavailable(
                "some of the data cannot be read; the operator finds the reason in the server log"
                    .to_owned(),
            )
        }
    };
    DataFusionError::External(Box::new(error))
}
