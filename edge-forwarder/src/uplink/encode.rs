//! Rows of the queue as Arrow messages.
//!
//! Owns: the columns as the server wants them (`docs/formats/stream.md`). Never: a dictionary, so
//! that each message stands alone.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::{FlightData, utils::batches_to_flight_data};
use millrace_protocol::arrow::to_record_batch;

use crate::delivery::Outgoing;

/// One message: its schema, the schema's message, the data messages.
pub(super) type Encoded = (SchemaRef, Option<FlightData>, Vec<FlightData>);

/// Encodes a message; the error is for people.
pub(super) fn encode(message: &Outgoing) -> Result<Encoded, String> {
    let mut batch = message.part.batch.clone();
    batch.line = (1..).take(batch.rows()).collect();
    let batch = to_record_batch(&batch, &message.part.database).map_err(|e| e.to_string())?;
    let batch = plain(&batch).map_err(|e| e.to_string())?;
    let schema = batch.schema();
    let mut messages =
        batches_to_flight_data(&schema, vec![batch]).map_err(|e| e.to_string())?.into_iter();
    let first = messages.next();
    let header = message.header.to_bytes();
    let data = messages.map(|m| FlightData { app_metadata: header.clone().into(), ..m });
    Ok((schema, first, data.collect()))
}

/// Tag columns as plain text.
fn plain(batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let schema = batch.schema();
    let mut fields = Vec::with_capacity(schema.fields().len());
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if matches!(field.data_type(), DataType::Dictionary(_, _)) {
            let plain = Field::new(field.name(), DataType::Utf8, field.is_nullable());
            fields.push(plain.with_metadata(field.metadata().clone()));
            columns.push(cast(column, &DataType::Utf8)?);
        } else {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
        }
    }
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    RecordBatch::try_new(Arc::new(schema), columns)
}
