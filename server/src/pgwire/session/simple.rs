//! The simple protocol: a text with statements, and those that concern the connection alone.
//!
//! Owns: what a transaction and a setting are here. Never: has anything to commit.

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use millrace_query::{Params, postgres};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{
        refusal::Refusal,
        script::{self, Kind},
    },
    SCRIPT_MAX, Session, Stop, Transaction, describe_rows,
    portal::Running,
    statement,
};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    /// Statements of the simple protocol, up to the first that fails.
    pub(super) async fn script(&mut self, text: &str) -> Result<(), Stop> {
        let statements = script::split(text);
        if statements.is_empty() {
            self.out.bare(b'I');
        }
        if statements.len() > SCRIPT_MAX {
            let text = format!("a text has at most {SCRIPT_MAX} statements");
            return Err(Refusal::new("54001", text).into());
        }
        for sql in statements {
            let kind = script::kind(sql);
            self.may(&kind)?;
            match kind {
                Kind::Query => {
                    let mut running = self.start(sql, Params::None).await?;
                    describe_rows(&mut self.out, &running.schema, &[]);
                    self.send(&mut running, &[], 0).await?;
                }
                Kind::Show(name) => {
                    let (schema, batch) = self.shown(&name)?;
                    describe_rows(&mut self.out, &schema, &[]);
                    let mut running = Running::of(schema, batch, "SHOW");
                    self.send(&mut running, &[], 0).await?;
                }
                other => self.utility(other)?,
            }
        }
        Ok(())
    }

    /// Nothing but its end may follow an error inside a transaction.
    pub(super) fn may(&self, kind: &Kind) -> Result<(), Refusal> {
        let ends = matches!(kind, Kind::Commit | Kind::Rollback | Kind::Empty)
            || *kind == Kind::Nothing("ROLLBACK");
        if self.transaction == Transaction::Failed && !ends {
            return Err(Refusal::new("25P02", "the transaction has failed; end it with ROLLBACK"));
        }
        Ok(())
    }

    /// A statement that concerns the connection alone.
    pub(super) fn utility(&mut self, kind: Kind) -> Result<(), Refusal> {
        let failed = self.transaction == Transaction::Failed;
        let tag = match kind {
            Kind::Begin => {
                self.transaction = Transaction::Open;
                "BEGIN"
            }
            Kind::Commit | Kind::Rollback => {
                self.transaction = Transaction::None;
                if failed || kind == Kind::Rollback { "ROLLBACK" } else { "COMMIT" }
            }
            Kind::Set { name, value } => {
                self.set(&name, &value)?;
                "SET"
            }
            Kind::Deallocate(Some(name)) => {
                self.statements.remove(&name);
                "DEALLOCATE"
            }
            Kind::Deallocate(None) => {
                self.statements.clear();
                "DEALLOCATE ALL"
            }
            Kind::DiscardAll => {
                self.statements.clear();
                self.portals.clear();
                "DISCARD ALL"
            }
            Kind::Nothing(tag) => tag,
            Kind::Empty => {
                self.out.bare(b'I');
                return Ok(());
            }
            Kind::NotOffered => {
                let text = "this statement is not offered here: there are queries, SHOW and SET";
                return Err(Refusal::new("0A000", text));
            }
            Kind::Query | Kind::Show(_) => {
                return Err(Refusal::new("XX000", "this statement has rows"));
            }
        };
        // ROLLBACK TO ends a failure, too: there was nothing to undo.
        if failed && tag == "ROLLBACK" && self.transaction == Transaction::Failed {
            self.transaction = Transaction::Open;
        }
        self.out.complete(tag);
        Ok(())
    }

    /// Settings count for nothing here, but for where names are looked up.
    fn set(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        match name {
            "search_path" => {
                let named = crate::api::database(Some(value.to_owned()));
                self.who.database = named.map_err(|p| Refusal::new("3F000", p.detail))?;
            }
            "application_name" => self.out.parameter("application_name", value),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn caller(&self) -> postgres::Caller {
        postgres::Caller { user: self.who.user.clone(), pid: self.who.place.pid }
    }

    /// What `SHOW` answers.
    pub(super) fn shown(&self, name: &str) -> Result<(SchemaRef, RecordBatch), Refusal> {
        let database = &self.who.database;
        let rows = match name {
            "all" => postgres::settings(&self.caller(), database),
            name => {
                let value = postgres::setting(&self.caller(), database, name);
                let unknown = || Refusal::new("42704", format!("there is no setting `{name}`"));
                vec![(name.to_owned(), value.ok_or_else(unknown)?)]
            }
        };
        statement::shown(name, &rows)
    }
}
