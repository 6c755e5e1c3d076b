//! Runs an ASOF join: two sorted sides are read once, side by side.
//!
//! Owns: the match of a row and what of it the query's memory counts. Both sides come sorted by
//! what has to be equal and then by what has to be near, nulls first, and cut by the former.
//! Never: holds more than one batch of the left side and those batches of the right side that rows
//! of it matched.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
        compute::{SortOptions, interleave},
        datatypes::{DataType, SchemaRef},
        row::{RowConverter, Rows, SortField},
    },
    catalog::Session,
    common::{plan_err, tree_node::TreeNodeRecursion},
    error::Result,
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    logical_expr::{
        LogicalPlan, Operator, UserDefinedLogicalNode,
        physical_planning_context::PhysicalPlanningContext, utils::conjunction,
    },
    physical_expr::{
        Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalSortExpr,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, PhysicalExpr,
        PlanProperties,
        coop::make_cooperative,
        execution_plan::{Boundedness, EmissionType, SchedulingType},
        filter::FilterExec,
        metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet, RecordOutput},
        stream::RecordBatchStreamAdapter,
    },
    physical_planner::{ExtensionPlanner, PhysicalPlanner},
};
use futures::StreamExt;

use super::node::AsofJoin;
use crate::{
    functions::{Stop, value_bytes},
    operator::gapfill::bytes,
};

/// Batches of the right side that one batch of output may take its rows from.
const RIGHT_BATCHES_MAX: usize = 16;
/// Bytes of texts and lists of the right side in one batch of output.
const RIGHT_BYTES_MAX: u64 = 16 << 20;

/// Plans the logical node.
#[derive(Debug)]
pub(in crate::operator) struct AsofPlanner(pub(in crate::operator) Stop);

#[async_trait]
impl ExtensionPlanner for AsofPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical: &[&LogicalPlan],
        physical: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(join) = node.as_any().downcast_ref::<AsofJoin>() else { return Ok(None) };
        let [left, right] = physical else { return plan_err!("an ASOF join has two inputs") };
        let mut sides = [
            Side { input: Arc::clone(left), keys: Vec::new() },
            Side { input: Arc::clone(right), keys: Vec::new() },
        ];
        for pair in join.on.iter().chain([&join.near]) {
            let of_left = (&pair.left, join.left.schema());
            let of_right = (&pair.right, join.right.schema());
            for (side, (expr, schema)) in sides.iter_mut().zip([of_left, of_right]) {
                side.keys.push(planner.create_physical_expr(expr, schema, session, context)?);
            }
        }
        let [left, right] = sides;
        let schema = Arc::new(node.schema().as_arrow().clone());
        let made: Arc<dyn ExecutionPlan> =
            Arc::new(AsofJoinExec::try_new(left, right, join.op, schema, self.0.clone())?);
        let Some(gate) = conjunction(join.gates.clone()) else { return Ok(Some(made)) };
        let gate = planner.create_physical_expr(&gate, node.schema(), session, context)?;
        Ok(Some(Arc::new(FilterExec::try_new(gate, made)?)))
    }
}

/// An input and what is compared of it: what has to be equal, and at the end what has to be near.
#[derive(Debug, Clone)]
struct Side {
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
}

impl Side {
    fn distribution(&self) -> Distribution {
        match self.keys.split_last() {
            Some((_, equal)) if !equal.is_empty() => Distribution::KeyPartitioned(equal.to_vec()),
            _ => Distribution::SinglePartition,
        }
    }

    fn sorting(&self) -> Option<OrderingRequirements> {
        let options = SortOptions { descending: false, nulls_first: true };
        let keys =
            self.keys.iter().map(|expr| PhysicalSortExpr { expr: Arc::clone(expr), options });
        LexOrdering::new(keys).map(OrderingRequirements::from)
    }

    /// Converters to comparable bytes: of all that is equal, and of what is near.
    fn converters(&self) -> Result<(RowConverter, RowConverter)> {
        let schema = self.input.schema();
        let fields = self.keys.iter().map(|k| Ok(SortField::new(k.data_type(&schema)?)));
        let mut fields = fields.collect::<Result<Vec<SortField>>>()?;
        let near = fields.pop();
        Ok((RowConverter::new(fields)?, RowConverter::new(near.into_iter().collect())?))
    }
}

/// See the module head.
#[derive(Debug)]
struct AsofJoinExec {
    left: Side,
    right: Side,
    op: Operator,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    schema: SchemaRef,
    stop: Stop,
}

impl AsofJoinExec {
    fn try_new(
        left: Side,
        right: Side,
        op: Operator,
        schema: SchemaRef,
        stop: Stop,
    ) -> Result<Self> {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            datafusion::physical_plan::Partitioning::UnknownPartitioning(
                left.input.properties().output_partitioning().partition_count(),
            ),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        let (properties, metrics) = (Arc::new(properties), ExecutionPlanMetricsSet::new());
        Ok(Self { left, right, op, properties, metrics, schema, stop })
    }
}

impl DisplayAs for AsofJoinExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsofJoinExec:")?;
        for (at, (a, b)) in self.left.keys.iter().zip(&self.right.keys).enumerate() {
            let near = at + 1 == self.left.keys.len();
            let op = if near { self.op } else { Operator::Eq };
            write!(f, " {a} {op} {b}{}", if near { "" } else { "," })?;
        }
        Ok(())
    }
}

impl ExecutionPlan for AsofJoinExec {
    fn name(&self) -> &'static str {
        "AsofJoinExec"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left.input, &self.right.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let sides = vec![self.left.distribution(), self.right.distribution()];
        if self.left.keys.len() > 1 {
            InputDistributionRequirements::co_partitioned(sides)
        } else {
            InputDistributionRequirements::new(sides)
        }
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![self.left.sorting(), self.right.sorting()]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for expr in self.left.keys.iter().chain(&self.right.keys) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([left, right]) = <[_; 2]>::try_from(children) else {
            return plan_err!("an ASOF join has two inputs");
        };
        let left = Side { input: left, keys: self.left.keys.clone() };
        let right = Side { input: right, keys: self.right.keys.clone() };
        let schema = Arc::clone(&self.schema);
        Ok(Arc::new(Self::try_new(left, right, self.op, schema, self.stop.clone())?))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let merge = Merge {
            left: Reader::new(&self.left, partition, &context)?,
            right: Reader::new(&self.right, partition, &context)?,
            backward: matches!(self.op, Operator::Gt | Operator::GtEq),
            equal_too: matches!(self.op, Operator::GtEq | Operator::LtEq),
            nearest: None,
            schema: Arc::clone(&self.schema),
            memory: MemoryConsumer::new("AsofJoinExec").register(context.memory_pool()),
            stop: self.stop.clone(),
        };
        let rows = futures::stream::try_unfold(merge, |mut merge| async move {
            Ok(merge.next().await?.map(|batch| (batch, merge)))
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

/// A batch with its rows as comparable bytes.
struct Sorted {
    batch: RecordBatch,
    equal: Rows,
    near: Rows,
    /// Rows in which something that is compared is null: they match nothing.
    null: Vec<bool>,
}

/// One side being read, row by row.
struct Reader {
    input: SendableRecordBatchStream,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    converters: (RowConverter, RowConverter),
    now: Option<Arc<Sorted>>,
    row: usize,
}

impl Reader {
    fn new(side: &Side, partition: usize, context: &Arc<TaskContext>) -> Result<Self> {
        Ok(Self {
            input: side.input.execute(partition, Arc::clone(context))?,
            keys: side.keys.clone(),
            converters: side.converters()?,
            now: None,
            row: 0,
        })
    }

    /// Whether the side stands on a row; reads the next batch if it has to.
    async fn ready(&mut self) -> Result<bool> {
        while self.now.as_ref().is_none_or(|n| self.row >= n.batch.num_rows()) {
            let Some(batch) = self.input.next().await else {
                self.now = None;
                return Ok(false);
            };
            let batch = batch?;
            let mut keys = Vec::with_capacity(self.keys.len());
            for key in &self.keys {
                keys.push(key.evaluate(&batch)?.into_array(batch.num_rows())?);
            }
            let null = (0..batch.num_rows()).map(|row| keys.iter().any(|k| k.is_null(row)));
            let null = null.collect();
            let near: Vec<ArrayRef> = keys.pop().into_iter().collect();
            let equal = if keys.is_empty() {
                self.converters.0.empty_rows(0, 0)
            } else {
                self.converters.0.convert_columns(&keys)?
            };
            let near = self.converters.1.convert_columns(&near)?;
            self.now = Some(Arc::new(Sorted { batch, equal, near, null }));
            self.row = 0;
        }
        Ok(true)
    }
}

impl Sorted {
    fn equal(&self, row: usize) -> &[u8] {
        // Without such columns all rows are equal.
        if self.equal.num_rows() == 0 { &[] } else { self.equal.row(row).data() }
    }

    /// Bytes of texts and lists in a row.
    fn row_bytes(&self, row: usize) -> u64 {
        let columns = self.batch.columns().iter();
        let wide = columns.filter(|c| {
            !c.data_type().is_primitive()
                && !matches!(c.data_type(), DataType::Dictionary(..) | DataType::Boolean)
        });
        wide.map(|c| value_bytes(c, row, 1)).sum()
    }
}

/// Both sides on their way.
struct Merge {
    left: Reader,
    right: Reader,
    /// The nearest is before, not after.
    backward: bool,
    equal_too: bool,
    /// The last row of the right side that was passed.
    nearest: Option<(Arc<Sorted>, usize)>,
    schema: SchemaRef,
    memory: MemoryReservation,
    stop: Stop,
}

impl Merge {
    /// The rows of the left side's batch, or a part of them, with what they matched.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.stop.check()?;
        if !self.left.ready().await? {
            return Ok(None);
        }
        let Some(left) = self.left.now.clone() else { return Ok(None) };
        let start = self.left.row;
        let mut held: Vec<Arc<Sorted>> = Vec::new();
        let mut places: Vec<Option<(usize, usize)>> = Vec::new();
        let mut wide = 0;
        while self.left.row < left.batch.num_rows() {
            let found = self.find(&left, self.left.row).await?;
            self.left.row += 1;
            let Some((right, row)) = found else {
                places.push(None);
                continue;
            };
            wide += right.row_bytes(row);
            if !held.last().is_some_and(|last| Arc::ptr_eq(last, &right)) {
                held.push(right);
            }
            places.push(Some((held.len() - 1, row)));
            if held.len() >= RIGHT_BATCHES_MAX || wide > RIGHT_BYTES_MAX {
                break;
            }
        }
        let sizes =
            held.iter().chain([&left]).map(|s| bytes(&s.batch) + s.near.size() + s.equal.size());
        self.memory.try_resize(sizes.sum())?;
        let part = left.batch.slice(start, places.len());
        self.output(&part, &held, &places).map(Some)
    }

    /// Moves the right side up to a row of the left one; returns its match.
    async fn find(&mut self, left: &Sorted, row: usize) -> Result<Option<(Arc<Sorted>, usize)>> {
        if left.null.get(row).copied().unwrap_or(true) {
            return Ok(None);
        }
        let (equal, near) = (left.equal(row), left.near.row(row));
        while self.right.ready().await? {
            let Some(right) = &self.right.now else { break };
            let at = self.right.row;
            let passes = right.equal(at).cmp(equal).then_with(|| right.near.row(at).cmp(&near));
            // Backward, a row of the same time is taken along if it counts; forward, if it does not.
            let pass = passes.is_lt() || passes.is_eq() && self.backward == self.equal_too;
            let null = right.null.get(at).copied().unwrap_or(true);
            let skipped = null && right.equal(at) <= equal;
            if !(pass || skipped) {
                break;
            }
            if !null && self.backward {
                self.nearest = Some((Arc::clone(right), at));
            }
            self.right.row += 1;
            if at.is_multiple_of(8192) {
                self.stop.check()?;
            }
        }
        let found = if self.backward {
            self.nearest.clone()
        } else {
            self.right.now.clone().map(|right| (right, self.right.row))
        };
        Ok(found.filter(|(right, at)| right.equal(*at) == equal))
    }

    fn output(
        &self,
        left: &RecordBatch,
        held: &[Arc<Sorted>],
        places: &[Option<(usize, usize)>],
    ) -> Result<RecordBatch> {
        let places: Vec<(usize, usize)> =
            places.iter().map(|p| p.unwrap_or((held.len(), 0))).collect();
        let mut columns = left.columns().to_vec();
        for (at, field) in self.schema.fields().iter().skip(columns.len()).enumerate() {
            let null = new_null_array(field.data_type(), 1);
            let parts = held.iter().map(|s| s.batch.column(at).as_ref());
            let parts: Vec<&dyn Array> = parts.chain([null.as_ref()]).collect();
            columns.push(interleave(&parts, &places)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
        let schema = Arc::clone(&self.schema);
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }
}
