//! The extended protocol: statements that are prepared, given values, and run by portions.
//!
//! Owns: what each of its messages does. Never: sends rows by itself, or plans.

use std::sync::Arc;

use bytes::BufMut;
use millrace_query::postgres;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{
        message::{Bind, Frontend},
        refusal::Refusal,
        script::{self, Kind},
    },
    KEPT_BYTES_MAX, PORTALS_MAX, STATEMENTS_MAX, Session, Stop, describe_rows,
    portal::{Portal, Running},
    statement::Statement,
};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    /// One message of the extended protocol.
    pub(super) async fn extended(&mut self, message: Frontend) -> Result<(), Stop> {
        match message {
            Frontend::Parse { name, sql, types } => self.parse(name, sql, types).await,
            Frontend::Bind(bind) => Ok(self.bind(bind)?),
            Frontend::Describe { portal, name } => Ok(self.describe(portal, &name)?),
            Frontend::Execute { portal, rows_max } => self.execute(&portal, rows_max).await,
            Frontend::Close { portal, name } => {
                if portal {
                    self.portals.remove(&name);
                } else {
                    self.statements.remove(&name);
                }
                self.out.bare(b'3');
                Ok(())
            }
            _ => Err(Refusal::new("0A000", "COPY and function calls are not offered").into()),
        }
    }

    async fn parse(&mut self, name: String, sql: String, types: Vec<u32>) -> Result<(), Stop> {
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(Refusal::new("42P05", "a statement of this name is there already").into());
        }
        let parts = script::split(&sql);
        let one = match parts.as_slice() {
            [] => "",
            [one] => one,
            _ => return Err(Refusal::new("42601", "one statement is prepared at a time").into()),
        };
        let kind = script::kind(one);
        self.may(&kind)?;
        let statement = match &kind {
            Kind::Query => {
                let state = Arc::clone(&self.who.state);
                let declared = types.iter().map(|oid| postgres::types::parameter(*oid)).collect();
                let caller = Some(self.caller());
                let (scope, database) = (self.who.scope, self.who.database.clone());
                let told = state.query.describe_for(scope, &database, one, declared, caller);
                let told = self.unless_stopped(told).await??;
                Statement::query(one, &types, told)?
            }
            Kind::Show(name) => {
                let (schema, _) = self.shown(name)?;
                Statement::other(kind.clone(), Some(schema))
            }
            Kind::NotOffered => {
                self.utility(kind)?;
                return Ok(());
            }
            _ => Statement::other(kind, None),
        };
        let bytes: usize = self.statements.values().map(|s| s.sql.len()).sum();
        if self.statements.len() >= STATEMENTS_MAX || bytes + sql.len() > KEPT_BYTES_MAX {
            let text = "this connection has too many prepared statements; close some";
            return Err(Refusal::new("53400", text).into());
        }
        self.statements.insert(name, Arc::new(statement));
        self.out.bare(b'1');
        Ok(())
    }

    fn statement(&self, name: &str) -> Result<Arc<Statement>, Refusal> {
        let found = self.statements.get(name).cloned();
        found.ok_or_else(|| Refusal::new("26000", format!("there is no statement `{name}`")))
    }

    fn bind(&mut self, bind: Bind) -> Result<(), Refusal> {
        let statement = self.statement(&bind.statement)?;
        self.may(&statement.kind)?;
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            return Err(Refusal::new("42P03", "a portal of this name is there already"));
        }
        let bytes: usize = self.portals.values().map(|p| p.bytes).sum();
        let name = bind.portal.clone();
        let portal = Portal::bind(statement, bind)?;
        if self.portals.len() >= PORTALS_MAX || bytes + portal.bytes > KEPT_BYTES_MAX {
            return Err(Refusal::new("53400", "this connection has too many open portals"));
        }
        self.portals.insert(name, portal);
        self.out.bare(b'2');
        Ok(())
    }

    fn describe(&mut self, portal: bool, name: &str) -> Result<(), Refusal> {
        let (statement, formats) = if portal {
            let found = self.portals.get(name);
            let found = found
                .ok_or_else(|| Refusal::new("34000", format!("there is no portal `{name}`")))?;
            (Arc::clone(&found.statement), found.formats.clone())
        } else {
            let statement = self.statement(name)?;
            self.out.message(b't', |out| {
                out.put_u16(statement.oids.len() as u16);
                statement.oids.iter().for_each(|oid| out.put_u32(*oid));
            });
            (statement, Vec::new())
        };
        match &statement.schema {
            Some(schema) => describe_rows(&mut self.out, schema, &formats),
            None => self.out.bare(b'n'),
        }
        Ok(())
    }

    async fn execute(&mut self, name: &str, most: u32) -> Result<(), Stop> {
        let mut portal = self
            .portals
            .remove(name)
            .ok_or_else(|| Refusal::new("34000", format!("there is no portal `{name}`")))?;
        let statement = Arc::clone(&portal.statement);
        self.may(&statement.kind)?;
        let mut running = match (portal.running.take(), &statement.kind) {
            (Some(running), _) => running,
            (None, Kind::Query) => {
                let started = self.start(&statement.sql, portal.params.clone()).await?;
                started.fits(&statement)?
            }
            (None, Kind::Show(setting)) => {
                let (schema, batch) = self.shown(setting)?;
                Running::of(schema, batch, "SHOW")
            }
            (None, other) => {
                self.utility(other.clone())?;
                self.portals.insert(name.to_owned(), portal);
                return Ok(());
            }
        };
        self.send(&mut running, &portal.formats, most).await?;
        portal.running = Some(running);
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }
}
