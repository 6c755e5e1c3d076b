//! A statement with its values, and the rows of it that are on their way.
//!
//! Owns: where a client that takes rows by portions has stopped. Never: holds more than one batch.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
};
use futures::stream::BoxStream;
use millrace_query::{Params, QueryAnswer, QueryError};

use super::{
    super::{
        message::Bind,
        param,
        refusal::Refusal,
        value::{self, Format},
    },
    statement::Statement,
};

/// See the module head.
pub(super) struct Portal {
    pub(super) statement: Arc<Statement>,
    pub(super) params: Params,
    /// Of the results.
    pub(super) formats: Vec<Format>,
    /// Of the values.
    pub(super) bytes: usize,
    pub(super) running: Option<Running>,
}

fn formats(codes: &[u16]) -> Result<Vec<Format>, Refusal> {
    let one = |code: &u16| match code {
        0 => Ok(Format::Text),
        1 => Ok(Format::Binary),
        _ => Err(Refusal::new("08P01", "a format is 0 (text) or 1 (binary)")),
    };
    codes.iter().map(one).collect()
}

impl Portal {
    /// Gives a statement its values.
    pub(super) fn bind(statement: Arc<Statement>, bind: Bind) -> Result<Self, Refusal> {
        let (wanted, given) = (statement.oids.len(), bind.values.len());
        if wanted != given {
            let text = format!("the statement has {wanted} parameters, {given} values were given");
            return Err(Refusal::new("08P01", text));
        }
        let given = formats(&bind.formats)?;
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for (number, data_type) in &statement.places {
            let at = number - 1;
            let value = bind.values.get(at).and_then(Option::as_ref);
            let oid = statement.oids.get(at).copied().unwrap_or(0);
            let column = param::column(value, oid, super::format_of(&given, at), data_type);
            let column = column
                .map_err(|e| Refusal::new("22P02", format!("the value of ${number}: {e}")))?;
            columns.push((number.to_string(), column));
        }
        let params = if columns.is_empty() {
            Params::None
        } else {
            let batch = RecordBatch::try_from_iter_with_nullable(
                columns.into_iter().map(|(name, column)| (name, column, true)),
            );
            Params::from_batch(&batch.map_err(|e| Refusal::new("22P02", e.to_string()))?)?
        };
        let bytes = bind.values.iter().flatten().map(bytes::Bytes::len).sum();
        let formats = formats(&bind.results)?;
        Ok(Self { statement, params, formats, bytes, running: None })
    }
}

/// Rows on their way.
pub(super) struct Running {
    pub(super) schema: SchemaRef,
    rows: Option<BoxStream<'static, Result<RecordBatch, QueryError>>>,
    columns: Vec<ArrayRef>,
    /// Rows of the batch, and how many were taken.
    batch: (usize, usize),
    taken: u64,
    tag: &'static str,
}

impl Running {
    pub(super) fn new(answer: QueryAnswer) -> Self {
        let QueryAnswer { schema, rows } = answer;
        let tag = "SELECT";
        Self { schema, rows: Some(rows), columns: Vec::new(), batch: (0, 0), taken: 0, tag }
    }

    /// Rows that are all there.
    pub(super) fn of(schema: SchemaRef, batch: RecordBatch, tag: &'static str) -> Self {
        let rows = batch.num_rows();
        let columns = batch.columns().to_vec();
        Self { schema, rows: None, columns, batch: (rows, 0), taken: 0, tag }
    }

    /// The same, if its columns are what the client was told; a table may have changed since.
    pub(super) fn fits(self, statement: &Statement) -> Result<Self, Refusal> {
        let told = statement.schema.as_ref();
        let oids = |schema: &SchemaRef| -> Vec<u32> {
            let fields = schema.fields().iter();
            fields.map(|f| millrace_query::postgres::types::of(f.data_type()).oid).collect()
        };
        if told.is_some_and(|told| oids(told) != oids(&self.schema)) {
            let text = "the columns of the result have changed; prepare the statement again";
            return Err(Refusal::new("0A000", text));
        }
        Ok(self)
    }

    /// The next row of the batch that is here.
    pub(super) fn row(&mut self) -> Option<usize> {
        let (rows, at) = self.batch;
        if at >= rows {
            return None;
        }
        self.batch.1 += 1;
        self.taken += 1;
        Some(at)
    }

    /// One row back: it was not sent.
    pub(super) fn put_back(&mut self) {
        self.batch.1 = self.batch.1.saturating_sub(1);
        self.taken = self.taken.saturating_sub(1);
    }

    pub(super) fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// Where more come from, if more come.
    pub(super) fn rest(
        &mut self,
    ) -> Option<&mut BoxStream<'static, Result<RecordBatch, QueryError>>> {
        self.rows.as_mut()
    }

    pub(super) fn take(&mut self, batch: RecordBatch) -> Result<(), Refusal> {
        self.columns = value::columns(&batch)
            .map_err(|e| Refusal::new("22000", format!("a column cannot be sent: {e}")))?;
        self.batch = (batch.num_rows(), 0);
        Ok(())
    }

    pub(super) fn end(&mut self) {
        self.rows = None;
        self.columns.clear();
        self.batch = (0, 0);
    }

    /// What the end of the statement says.
    pub(super) fn tag(&self) -> String {
        match self.tag {
            "SELECT" => format!("SELECT {}", self.taken),
            other => other.to_owned(),
        }
    }
}
