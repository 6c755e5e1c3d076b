//! Runs the filling: sorted rows in, every bucket of every group out.
//!
//! Owns: the cut of the input into groups, the count of made rows, and what of it the query's
//! memory counts. The input of a partition is whole groups, sorted by the group's columns and time.
//! Never: holds more than one batch of input, the group that is not complete, and one batch of
//! output.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, RecordBatch, make_comparator},
        compute::{SortOptions, concat_batches, partition},
        datatypes::SchemaRef,
    },
    catalog::Session,
    common::{plan_err, tree_node::TreeNodeRecursion},
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    logical_expr::{
        LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext,
        utils::conjunction,
    },
    physical_expr::{
        Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalSortExpr,
        expressions::Column,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, PhysicalExpr,
        PlanProperties,
        coop::make_cooperative,
        empty::EmptyExec,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        filter::FilterExec,
        metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput},
        stream::RecordBatchStreamAdapter,
    },
    physical_planner::{ExtensionPlanner, PhysicalPlanner},
};
use futures::StreamExt;

use super::{
    ROWS_MAX,
    group::{Group, Shape},
    node::{Fill, GapFill},
    rule::too_many,
};
use crate::{error::QueryError, functions::Stop};

/// Bytes of texts and lists that a made row may repeat. Operators above gather 8192 rows, so this
/// is what a function may make of one batch.
const REPEATED_BYTES_MAX: u64 = 16 << 10;

/// Plans our logical node.
#[derive(Debug)]
pub(in crate::operator) struct GapFillPlanner(pub(in crate::operator) Stop);

#[async_trait]
impl ExtensionPlanner for GapFillPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical: &[&LogicalPlan],
        physical: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(fill) = node.as_any().downcast_ref::<GapFill>() else { return Ok(None) };
        let [input] = physical else { return plan_err!("gap filling has one input") };
        let schema = Arc::new(fill.schema().as_arrow().clone());
        let Some(buckets) = fill.buckets else {
            return Ok(Some(Arc::new(EmptyExec::new(schema))));
        };
        let shape = Shape { fills: Arc::clone(&fill.fills), buckets, schema };
        let made: Arc<dyn ExecutionPlan> =
            Arc::new(GapFillExec::try_new(Arc::clone(input), Arc::new(shape), self.0.clone())?);
        let Some(gate) = conjunction(fill.gates.clone()) else { return Ok(Some(made)) };
        let gate = planner.create_physical_expr(&gate, fill.schema(), session, context)?;
        Ok(Some(Arc::new(FilterExec::try_new(gate, made)?)))
    }
}

/// See the module head.
#[derive(Debug)]
struct GapFillExec {
    input: Arc<dyn ExecutionPlan>,
    shape: Arc<Shape>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// Rows made by all partitions.
    made: Arc<AtomicU64>,
    stop: Stop,
}

impl GapFillExec {
    fn try_new(input: Arc<dyn ExecutionPlan>, shape: Arc<Shape>, stop: Stop) -> Result<Self> {
        let sorted = sorting(&shape)?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new_with_orderings(Arc::clone(&shape.schema), [sorted]),
            input.properties().output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Ok(Self {
            input,
            shape,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
            made: Arc::default(),
            stop,
        })
    }
}

fn keys(shape: &Shape) -> Vec<usize> {
    let places = shape.fills.iter().enumerate();
    places.filter(|(_, fill)| **fill == Fill::Key).map(|(at, _)| at).collect()
}

fn column(shape: &Shape, at: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(shape.schema.field(at).name(), at))
}

/// By the group's columns, then by time; nulls first.
fn sorting(shape: &Shape) -> Result<LexOrdering> {
    let columns = keys(shape).into_iter().chain([shape.time()]).map(|at| PhysicalSortExpr {
        expr: column(shape, at),
        options: SortOptions { descending: false, nulls_first: true },
    });
    match LexOrdering::new(columns) {
        Some(sorting) => Ok(sorting),
        None => plan_err!("gap filling sorts by time at least"),
    }
}

impl DisplayAs for GapFillExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GapFillExec: buckets={}", self.shape.buckets.count())
    }
}

impl ExecutionPlan for GapFillExec {
    fn name(&self) -> &'static str {
        "GapFillExec"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.shape.schema)
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let keys: Vec<_> = keys(&self.shape).into_iter().map(|k| column(&self.shape, k)).collect();
        let rows = if keys.is_empty() {
            Distribution::SinglePartition
        } else {
            Distribution::KeyPartitioned(keys)
        };
        InputDistributionRequirements::new(vec![rows])
    }

    // The order that comes out is declared with the properties. That the input's is kept is not said:
    // DataFusion would then sort the input as somebody above wants it, nulls last for instance.
    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![sorting(&self.shape).ok().map(OrderingRequirements::from)]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => {
                Ok(Arc::new(Self::try_new(input, Arc::clone(&self.shape), self.stop.clone())?))
            }
            Err(_) => plan_err!("gap filling has one input"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let filler = Filler {
            input: self.input.execute(partition, Arc::clone(&context))?,
            keys: keys(&self.shape),
            shape: Arc::clone(&self.shape),
            open: Vec::new(),
            complete: VecDeque::new(),
            memory: MemoryConsumer::new("GapFillExec").register(context.memory_pool()),
            rows_max: context.session_config().batch_size().max(1),
            made: Arc::clone(&self.made),
            stop: self.stop.clone(),
            ended: false,
            started: false,
        };
        let rows = futures::stream::try_unfold(filler, |mut filler| async move {
            Ok(filler.next().await?.map(|batch| (batch, filler)))
        })
        .map(move |batch: Result<RecordBatch>| Ok(batch?.record_output(&metrics)));
        let stream: SendableRecordBatchStream =
            Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows));
        Ok(make_cooperative(stream))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// One partition on its way.
struct Filler {
    input: SendableRecordBatchStream,
    keys: Vec<usize>,
    shape: Arc<Shape>,
    /// Rows of the group that may go on in the next batch.
    open: Vec<RecordBatch>,
    complete: VecDeque<Group>,
    memory: MemoryReservation,
    rows_max: usize,
    made: Arc<AtomicU64>,
    stop: Stop,
    ended: bool,
    /// A row came in.
    started: bool,
}

impl Filler {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            self.stop.check()?;
            if let Some(batch) = self.emit()? {
                return Ok(Some(batch));
            }
            if self.ended {
                return Ok(None);
            }
            match self.input.next().await {
                Some(batch) => self.take(&batch?)?,
                None => self.finish()?,
            }
        }
    }

    /// Rows of complete groups, gathered up to a batch.
    fn emit(&mut self) -> Result<Option<RecordBatch>> {
        let (mut parts, mut rows) = (Vec::new(), 0);
        while rows < self.rows_max {
            let Some(group) = self.complete.front_mut() else { break };
            match group.next(&self.shape, self.rows_max - rows)? {
                Some((part, made)) => {
                    if self.made.fetch_add(made, Ordering::AcqRel) + made > ROWS_MAX {
                        return Err(too_many());
                    }
                    rows += part.num_rows();
                    parts.push(part);
                }
                None => drop(self.complete.pop_front()),
            }
        }
        if self.complete.is_empty() {
            let open: usize = self.open.iter().map(bytes).sum();
            self.memory.try_resize(open)?;
        }
        match parts.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            many => Ok(Some(concat_batches(&self.shape.schema, many)?)),
        }
    }

    /// Cuts a batch into groups; the last of them stays open.
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.started = true;
        self.memory.try_grow(bytes(batch))?;
        let here = values(batch, &self.keys);
        let ranges = match here.is_empty() {
            true => std::iter::once(0..batch.num_rows()).collect(),
            false => partition(&here)?.ranges(),
        };
        for range in ranges {
            if let Some(before) = self.open.last()
                && range.start == 0
                && !same(&values(before, &self.keys), before.num_rows() - 1, &here, 0)?
            {
                self.close()?;
            } else if range.start > 0 {
                self.close()?;
            }
            self.open.push(batch.slice(range.start, range.end - range.start));
        }
        Ok(())
    }

    /// The open group is complete.
    fn close(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let open = std::mem::take(&mut self.open);
        self.memory.try_grow(open.iter().map(bytes).sum())?;
        let rows = match open.as_slice() {
            [one] => one.clone(),
            many => concat_batches(&self.input.schema(), many)?,
        };
        let group = Group::new(rows, &self.shape)?;
        if group.repeated_bytes(&self.shape.fills) > REPEATED_BYTES_MAX {
            return Err(DataFusionError::External(Box::new(QueryError::Invalid(format!(
                "date_bin_gapfill would repeat values of more than {REPEATED_BYTES_MAX} bytes in each row; group by shorter ones"
            )))));
        }
        self.complete.push_back(group);
        Ok(())
    }

    /// No more input. A query without other columns has one group, whether it has rows or not.
    fn finish(&mut self) -> Result<()> {
        self.ended = true;
        self.close()?;
        if !self.started && self.keys.is_empty() {
            let empty = RecordBatch::new_empty(self.input.schema());
            self.complete.push_back(Group::new(empty, &self.shape)?);
        }
        Ok(())
    }
}

fn values(rows: &RecordBatch, keys: &[usize]) -> Vec<ArrayRef> {
    keys.iter().map(|key| Arc::clone(rows.column(*key))).collect()
}

/// Whether two rows belong to one group; nulls are equal, as GROUP BY has it.
fn same(a: &[ArrayRef], row_a: usize, b: &[ArrayRef], row_b: usize) -> Result<bool> {
    for (a, b) in a.iter().zip(b) {
        let compare = make_comparator(a.as_ref(), b.as_ref(), SortOptions::default())?;
        if compare(row_a, row_b).is_ne() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Bytes of a batch's own rows; a slice counts for itself and not for what it was cut from.
pub(in crate::operator) fn bytes(batch: &RecordBatch) -> usize {
    let sizes = batch.columns().iter().map(|c| {
        let data = c.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| c.get_array_memory_size())
    });
    sizes.sum()
}
