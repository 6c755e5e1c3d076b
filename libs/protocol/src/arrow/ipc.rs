//! The messages of a Flight stream, whoever sent them, as record batches.
//!
//! Owns: what stands between hostile bytes and Arrow's own decoder. That decoder slices at the
//! offsets it is told, unwraps what a schema may leave out, takes as much memory as a compressed
//! buffer claims and inflates LZ4 without an end; so every one of these is checked before it is
//! called, and it runs fenced, so that a panic that is left is an error of this stream alone.
//! Never: keeps more than [`DICTIONARY_BYTES_MAX`] of one stream's dictionaries; takes LZ4.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::{
    array::{ArrayRef, RecordBatch},
    buffer::Buffer,
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
    ipc::{
        self, CompressionType, MessageHeader, MetadataVersion, Precision, TimeUnit, Type,
        convert::fb_to_schema,
        reader::{read_dictionary, read_record_batch},
        root_as_message,
    },
};

use crate::batch::ROWS_MAX;

/// Columns of a schema at most.
pub const COLUMNS_MAX: usize = 4096;
/// Bytes that the buffers of one message may inflate to.
pub const INFLATED_BYTES_MAX: usize = 128 << 20;
/// Bytes of messages that a stream's dictionaries may hold on to.
pub const DICTIONARY_BYTES_MAX: usize = 64 << 20;

/// A message that is refused; its stream cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpcError {
    /// The message's own description does not verify.
    #[error("the message is not Arrow IPC: {0}")]
    Header(String),
    /// A data message before any schema.
    #[error("a {0} came before the schema")]
    Early(&'static str),
    /// A column that a batch cannot have.
    #[error("column {column} of the schema {problem}")]
    Column {
        /// Its position from 0.
        column: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nodes or buffers that do not fit the schema or the body.
    #[error("the message does not fit its schema or its bytes: {0}")]
    Layout(&'static str),
    /// More than a limit.
    #[error("the message has too many {what}, at most {most} are taken")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many are taken.
        most: usize,
    },
    /// A codec that is not taken.
    #[error("the body is compressed with {0}; send zstd or no compression")]
    Codec(&'static str),
    /// Arrow's decoder refused it.
    #[error("the message does not decode: {0}")]
    Decode(String),
}

/// Dictionaries by id, as Arrow's decoder wants them.
#[expect(
    clippy::disallowed_types,
    reason = "the type is part of Arrow's interface; never iterated"
)]
type Dictionaries = std::collections::HashMap<i64, ArrayRef>;

/// Decodes the messages of one stream in order.
#[derive(Debug, Default)]
pub struct MessageDecoder {
    schema: Option<SchemaRef>,
    dictionaries: Dictionaries,
    dictionary_bytes: usize,
}

impl MessageDecoder {
    /// A decoder that waits for a schema.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stream's schema, once it came.
    pub fn schema(&self) -> Option<&SchemaRef> {
        self.schema.as_ref()
    }

    /// Takes the next message (`data_header` and `data_body` of Flight data): a record batch, or
    /// `None` for a schema, a dictionary or a message without a header.
    pub fn message(
        &mut self,
        header: &[u8],
        body: &Buffer,
    ) -> Result<Option<RecordBatch>, IpcError> {
        if header.is_empty() && body.is_empty() {
            return Ok(None);
        }
        let message = root_as_message(header).map_err(|e| IpcError::Header(e.to_string()))?;
        let absent = || IpcError::Header("its content is missing".to_owned());
        match message.header_type() {
            MessageHeader::Schema => {
                self.start(message.header_as_schema().ok_or_else(absent)?)?;
                Ok(None)
            }
            MessageHeader::DictionaryBatch => {
                let batch = message.header_as_dictionary_batch().ok_or_else(absent)?;
                self.dictionary(batch, body, message.version())?;
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch().ok_or_else(absent)?;
                self.batch(batch, body, message.version()).map(Some)
            }
            MessageHeader::NONE => Ok(None),
            _ => Err(IpcError::Header("it is no schema, dictionary or record batch".to_owned())),
        }
    }

    fn start(&mut self, schema: ipc::Schema<'_>) -> Result<(), IpcError> {
        if schema.endianness() != ipc::Endianness::Little {
            return Err(IpcError::Header("it is not little endian".to_owned()));
        }
        let fields = schema.fields().ok_or(IpcError::Layout("the schema has no columns"))?;
        at_most("columns", fields.len(), COLUMNS_MAX)?;
        for (column, field) in fields.iter().enumerate() {
            check_type(field).map_err(|problem| IpcError::Column { column, problem })?;
        }
        let schema = fenced(|| Ok(fb_to_schema(schema)))?;
        *self = Self { schema: Some(schema.into()), ..Self::default() };
        Ok(())
    }

    fn dictionary(
        &mut self,
        batch: ipc::DictionaryBatch<'_>,
        body: &Buffer,
        version: MetadataVersion,
    ) -> Result<(), IpcError> {
        let schema = self.schema.as_ref().ok_or(IpcError::Early("dictionary"))?;
        let data = batch.data().ok_or(IpcError::Layout("a dictionary has no values"))?;
        #[expect(deprecated, reason = "Arrow has no other way from a dictionary's id to its type")]
        let fields = schema.fields_with_dict_id(batch.id());
        let values = match fields.first().map(|field| field.data_type()) {
            Some(DataType::Dictionary(_, values)) => values.as_ref(),
            _ => return Err(IpcError::Layout("a dictionary belongs to no column")),
        };
        check_layout(data, std::iter::once(values), body)?;
        // A dictionary keeps its message alive. What it replaces is counted on, so a sender that
        // replaces dictionaries again and again opens a new stream from time to time.
        self.dictionary_bytes += body.len();
        at_most("bytes of dictionaries", self.dictionary_bytes, DICTIONARY_BYTES_MAX)?;
        let dictionaries = &mut self.dictionaries;
        fenced(|| read_dictionary(body, batch, schema, dictionaries, &version))
    }

    fn batch(
        &self,
        batch: ipc::RecordBatch<'_>,
        body: &Buffer,
        version: MetadataVersion,
    ) -> Result<RecordBatch, IpcError> {
        let schema = self.schema.as_ref().ok_or(IpcError::Early("record batch"))?;
        let types = schema.fields().iter().map(|field| field.data_type());
        check_layout(batch, types, body)?;
        let dictionaries = &self.dictionaries;
        fenced(|| {
            read_record_batch(body, batch, SchemaRef::clone(schema), dictionaries, None, &version)
        })
    }
}

/// Runs Arrow's decoder; a panic of it is an error.
fn fenced<T>(decode: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, IpcError> {
    // What the closures borrow is dropped with the stream after any error.
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(done) => done.map_err(|e| IpcError::Decode(e.to_string().chars().take(256).collect())),
        Err(_) => Err(IpcError::Decode("it contradicts itself".to_owned())),
    }
}

fn at_most(what: &'static str, given: usize, most: usize) -> Result<(), IpcError> {
    if given > most { Err(IpcError::TooLarge { what, most }) } else { Ok(()) }
}

/// Whether a column's type is one that a batch can have, and said in full.
fn check_type(field: ipc::Field<'_>) -> Result<(), &'static str> {
    let whole = |int: Option<ipc::Int<'_>>| {
        int.is_some_and(|int| matches!(int.bitWidth(), 8 | 16 | 32 | 64))
    };
    if let Some(dictionary) = field.dictionary() {
        let text = matches!(field.type_type(), Type::Utf8 | Type::LargeUtf8 | Type::Utf8View);
        if !text || !whole(dictionary.indexType()) {
            return Err("is a dictionary of something other than text");
        }
    }
    let good = match field.type_type() {
        Type::Null | Type::Bool | Type::Utf8 | Type::LargeUtf8 | Type::Utf8View => true,
        Type::Int => whole(field.type_as_int()),
        Type::FloatingPoint => field.type_as_floating_point().is_some_and(|float| {
            matches!(float.precision(), Precision::SINGLE | Precision::DOUBLE)
        }),
        Type::Timestamp => field.type_as_timestamp().is_some_and(|time| {
            let units = [
                TimeUnit::SECOND,
                TimeUnit::MILLISECOND,
                TimeUnit::MICROSECOND,
                TimeUnit::NANOSECOND,
            ];
            units.contains(&time.unit())
        }),
        _ => {
            return Err(
                "has a type without a meaning here: send integers, floats, booleans, text or timestamps",
            );
        }
    };
    if good { Ok(()) } else { Err("has a type that is not said in full") }
}

/// Buffers that a column of this type has; a view has more, by the message's own count.
fn buffers_of(ty: &DataType) -> usize {
    match ty {
        DataType::Null => 0,
        DataType::Utf8 | DataType::LargeUtf8 => 3,
        _ => 2,
    }
}

/// Checks counts, lengths and offsets of a message against its schema and its body.
fn check_layout<'t>(
    batch: ipc::RecordBatch<'_>,
    types: impl Iterator<Item = &'t DataType> + Clone,
    body: &Buffer,
) -> Result<(), IpcError> {
    let rows = usize::try_from(batch.length()).map_err(|_| IpcError::Layout("rows below zero"))?;
    at_most("rows", rows, ROWS_MAX)?;
    let nodes = batch.nodes().ok_or(IpcError::Layout("no columns"))?;
    let buffers = batch.buffers().ok_or(IpcError::Layout("no buffers"))?;
    if nodes.len() != types.clone().count() {
        return Err(IpcError::Layout("another number of columns"));
    }
    for node in nodes {
        let nulls = usize::try_from(node.null_count()).ok();
        if usize::try_from(node.length()).ok() != Some(rows) || nulls.is_none_or(|n| n > rows) {
            return Err(IpcError::Layout("a column of another length"));
        }
    }
    let mut wanted: usize = types.clone().map(buffers_of).sum();
    let views = types.filter(|ty| **ty == DataType::Utf8View).count();
    let variadic = batch.variadicBufferCounts();
    if variadic.map_or(0, |counts| counts.len()) != views {
        return Err(IpcError::Layout("another number of view columns"));
    }
    for count in variadic.into_iter().flatten() {
        let count = usize::try_from(count).ok().filter(|count| *count <= buffers.len());
        wanted += count.ok_or(IpcError::Layout("more buffers of a view than there are"))?;
    }
    if buffers.len() != wanted {
        return Err(IpcError::Layout("another number of buffers"));
    }
    let codec = batch.compression().map(|compression| compression.codec());
    if codec == Some(CompressionType::LZ4_FRAME) {
        return Err(IpcError::Codec("LZ4"));
    }
    let mut inflated = 0usize;
    for buffer in buffers {
        let part = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let part = part.and_then(|(at, len)| body.get(at..at.checked_add(len)?));
        let part = part.ok_or(IpcError::Layout("a buffer outside of the body"))?;
        if codec.is_some() && !part.is_empty() {
            let claim = part.first_chunk::<8>().map(|claim| i64::from_le_bytes(*claim));
            inflated = inflated.saturating_add(match claim {
                // Not compressed after all.
                Some(-1) => part.len(),
                Some(claim) => usize::try_from(claim)
                    .map_err(|_| IpcError::Layout("a buffer that inflates to less than nothing"))?,
                None => return Err(IpcError::Layout("a compressed buffer without its length")),
            });
            at_most("bytes when inflated", inflated, INFLATED_BYTES_MAX)?;
        }
    }
    Ok(())
}
