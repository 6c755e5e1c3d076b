//! Rows on their way out over Flight.
//!
//! Owns: the one shape in which columns are told and sent: no dictionaries, every column may be
//! null, no metadata. A client compares what a statement's description says with what comes, and
//! what the planner knows about nulls before and after it has seen values differs.
//! Never: holds more than a batch.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    error::ArrowError,
};
use arrow_flight::{FlightData, encode::FlightDataEncoderBuilder, error::FlightError};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use millrace_query::QueryAnswer;
use tonic::Status;

use super::{Problem, status};

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), plain_type(field.data_type()), true))
}

/// The type that is sent for a type.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => plain_type(value),
        DataType::List(of) => DataType::List(plain_field(of)),
        DataType::LargeList(of) => DataType::LargeList(plain_field(of)),
        other => other.clone(),
    }
}

/// The columns that are told.
pub(super) fn plain_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(plain_field).collect::<Vec<_>>()))
}

fn plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            return Ok(Arc::clone(column));
        }
        cast(column, field.data_type())
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &rows)
}

/// An answer as messages, made as the client takes them.
pub(super) fn messages(answer: QueryAnswer) -> BoxStream<'static, Result<FlightData, Status>> {
    let schema = plain_schema(&answer.schema);
    let told = Arc::clone(&schema);
    let rows = answer.rows.map(move |batch| {
        let batch = batch.map_err(|e| FlightError::Tonic(Box::new(status(Problem::from(e)))))?;
        Ok(plain(&batch, &schema)?)
    });
    FlightDataEncoderBuilder::new().with_schema(told).build(rows).map_err(broken).boxed()
}

/// One batch as messages.
pub(super) fn batch(batch: RecordBatch) -> BoxStream<'static, Result<FlightData, Status>> {
    let schema = batch.schema();
    let rows = futures::stream::iter([Ok(batch)]);
    FlightDataEncoderBuilder::new().with_schema(schema).build(rows).map_err(broken).boxed()
}

fn broken(e: FlightError) -> Status {
    match e {
        FlightError::Tonic(status) => *status,
        other => {
            tracing::error!(error = %other, "rows could not be sent over Flight");
            Status::internal("internal: the rows cannot be sent over Flight")
        }
    }
}
