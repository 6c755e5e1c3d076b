//! Arrow IPC as DoPut carries it: messages to record batches to column batches.
//!
//! Input: messages, each `u16` header length, `u16` body length, header, body. A body that is
//! shorter than it says ends the input.
//! Properties: a batch that is taken is consistent, has no more rows than its message, and goes
//! back to Arrow.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray,
        TimestampNanosecondArray, UInt64Array,
    },
    datatypes::{Field, Schema},
    ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
    record_batch::RecordBatch,
};
use millrace_protocol::{
    arrow::{MessageDecoder, TABLE, from_record_batch_seeded, to_record_batch},
    batch::RowLimits,
    line::{LineOptions, parse},
};

fn take<'a>(data: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = data.split_at_checked(len)?;
    *data = rest;
    Some(head)
}

fn length(data: &mut &[u8]) -> Option<usize> {
    take(data, 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
}

/// The target.
pub fn run(mut data: &[u8]) {
    let mut decoder = MessageDecoder::new();
    while let (Some(header), Some(body)) = (length(&mut data), length(&mut data)) {
        let (Some(header), Some(body)) = (take(&mut data, header), take(&mut data, body)) else {
            return;
        };
        match decoder.message(header, &body.to_vec().into()) {
            Ok(Some(batch)) => convert(&batch),
            Ok(None) => {}
            // The stream cannot go on.
            Err(_) => return,
        }
    }
}

fn convert(batch: &RecordBatch) {
    let taken = from_record_batch_seeded(batch, &RowLimits::default(), 3);
    let Ok((database, table, refusals)) = taken else { return };
    table.check().expect("a converted batch is consistent");
    assert!(table.rows() <= batch.num_rows());
    assert!(refusals.len() <= batch.num_rows() - table.rows(), "a refused row is not kept");
    to_record_batch(&table, &database).expect("what was taken goes back to Arrow");
}

/// Schema, dictionaries and rows of a batch, framed as the target reads them.
fn framed(batch: &RecordBatch) -> Vec<u8> {
    let generator = IpcDataGenerator::default();
    let options = IpcWriteOptions::default();
    let mut tracker = DictionaryTracker::new(false);
    let schema = generator.schema_to_bytes_with_dictionary_tracker(
        batch.schema().as_ref(),
        &mut tracker,
        &options,
    );
    let mut context = IpcWriteContext::default();
    let (dictionaries, rows) = generator
        .encode(batch, &mut tracker, &options, &mut context)
        .expect("a seed can be encoded");
    let mut out = Vec::new();
    for message in std::iter::once(schema).chain(dictionaries).chain([rows]) {
        out.extend_from_slice(&(message.ipc_message.len() as u16).to_le_bytes());
        out.extend_from_slice(&(message.arrow_data.len() as u16).to_le_bytes());
        out.extend_from_slice(&message.ipc_message);
        out.extend_from_slice(&message.arrow_data);
    }
    out
}

fn plain() -> RecordBatch {
    let columns: [(&str, ArrayRef); 6] = [
        ("time", Arc::new(TimestampNanosecondArray::from(vec![1, 2, 3]))),
        ("f", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(f64::NAN)]))),
        ("i", Arc::new(Int64Array::from(vec![Some(-1), Some(2), None]))),
        ("u", Arc::new(UInt64Array::from(vec![1, 2, 3]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("s", Arc::new(StringArray::from(vec![Some("a"), Some(""), None]))),
    ];
    let field =
        |(name, array): &(&str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
    let fields: Vec<Field> = columns.iter().map(field).collect();
    let metadata = [(TABLE.to_owned(), "press".to_owned())].into();
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(schema, arrays).expect("columns of one length")
}

/// Batches in the shapes that clients send.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let lines = b"cpu,host=a,rack=1 v=1i,w=2.5,s=\"on\" 1\ncpu,host=b v=3i 2\ncpu,host=a v=4i 3\n";
    let parsed = parse(lines, &LineOptions::default());
    let tags = to_record_batch(&parsed.tables[0], "default").expect("a batch");
    let twice = [framed(&tags), framed(&tags)].concat();
    vec![("plain", framed(&plain())), ("tags", framed(&tags)), ("twice", twice)]
}
