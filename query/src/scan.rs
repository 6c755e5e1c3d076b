//! The leaf of every plan: one table's rows as storage streams them.
//!
//! Owns: what EXPLAIN says about pruning, and the metrics that EXPLAIN ANALYZE adds.
//! Never: filters; whatever was pushed down is exact in storage already.

use std::{fmt, ops::Range, sync::Arc};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    common::tree_node::TreeNodeRecursion,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::EquivalenceProperties,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
        coop::make_cooperative,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        metrics::{
            BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput,
        },
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use millrace_storage::{ReadError, Scan};

use crate::provider::read_error;

/// See the module head.
#[derive(Debug)]
pub(crate) struct TelemetryScanExec {
    table: String,
    time: Range<i64>,
    limit: Option<usize>,
    scan: Scan,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl TelemetryScanExec {
    /// `time` is the range that the scan was pruned by, for display.
    pub(crate) fn new(table: &str, time: Range<i64>, limit: Option<usize>, scan: Scan) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&scan.schema)),
            Partitioning::UnknownPartitioning(scan.partitions()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self {
            table: table.to_owned(),
            time,
            limit,
            scan,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// What pruning did, once per scan: it happened at planning, before any partition ran.
    fn record_pruning(&self, partition: usize) {
        if partition != 0 {
            return;
        }
        let s = &self.scan.stats;
        for (name, value) in [
            ("files_total", s.files),
            ("files_pruned", s.files - s.files_read),
            ("series_total", s.series),
            ("series_matched", s.series_read),
            ("rows_planned", usize::try_from(s.rows).unwrap_or(usize::MAX)),
        ] {
            MetricBuilder::new(&self.metrics).counter(name, partition).add(value);
        }
    }
}

/// A group of series as batches of the session's size. Storage returns a group as a whole, and
/// one long series can be millions of rows, while limits on what functions make are for a batch.
fn pieces(
    group: std::result::Result<RecordBatch, ReadError>,
    rows_max: usize,
) -> Vec<Result<RecordBatch>> {
    match group {
        Ok(group) => (0..group.num_rows())
            .step_by(rows_max)
            .map(|at| Ok(group.slice(at, rows_max.min(group.num_rows() - at))))
            .collect(),
        Err(e) => vec![Err(read_error(e))],
    }
}

/// A bound as people read it; open ends are left out.
fn bound(ns: i64) -> String {
    match ns {
        i64::MIN | i64::MAX => String::new(),
        ns => datafusion::arrow::temporal_conversions::timestamp_ns_to_datetime(ns)
            .map_or_else(|| ns.to_string(), |t| format!("{}Z", t.format("%Y-%m-%dT%H:%M:%S%.f"))),
    }
}

impl DisplayAs for TelemetryScanExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.scan.stats;
        let columns: Vec<&str> =
            self.scan.schema.fields().iter().map(|c| c.name().as_str()).collect();
        write!(
            f,
            "TelemetryScanExec: table={}, columns=[{}], time=[{}, {}), files={}/{}, series={}/{}, rows<={}, partitions={}",
            self.table,
            columns.join(", "),
            bound(self.time.start),
            bound(self.time.end),
            s.files_read,
            s.files,
            s.series_read,
            s.series,
            s.rows,
            self.scan.partitions(),
        )?;
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for TelemetryScanExec {
    fn name(&self) -> &'static str {
        "TelemetryScanExec"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.scan.schema)
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.record_pruning(partition);
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows_max = context.session_config().batch_size().max(1);
        let rows = self
            .scan
            .stream(partition)
            .flat_map(move |batch| futures::stream::iter(pieces(batch, rows_max)))
            .map(move |batch| Ok(batch?.record_output(&metrics)));
        let schema = Arc::clone(&self.scan.schema);
        let stream: SendableRecordBatchStream =
            Box::pin(RecordBatchStreamAdapter::new(schema, rows));
        Ok(make_cooperative(stream))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
