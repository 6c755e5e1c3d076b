//! `millrace sql`: one statement, or a prompt.

use clap::Args;
use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::json;

use super::{Failure, Remote, client::Client, say, say_error};

/// Arguments of `millrace sql`.
#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    #[command(flatten)]
    remote: Remote,
    /// Database.
    #[arg(long, default_value = "default")]
    db: String,
    /// table, csv, json, jsonl.
    #[arg(long, default_value = "table", value_parser = ["table", "csv", "json", "jsonl"])]
    format: String,
    /// The same as --format json.
    #[arg(long)]
    json: bool,
    /// The statement; without one a prompt opens.
    statement: Option<String>,
}

const HELP: &str = "\
SELECT ...;            ask; ends with ; and Enter
SHOW TABLES;           what is there
DESCRIBE table;        a table's columns
Ctrl-C                 forget the lines typed so far
\\q, exit or Ctrl-D     leave";

fn ask(client: &Client, db: &str, format: &str, sql: &str) -> Result<String, Failure> {
    let format = if format == "table" { "pretty" } else { format };
    let body =
        client.post("/api/v3/query_sql", &json!({ "db": db, "q": sql, "format": format }))?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}

/// Runs the statement or the prompt.
pub(crate) fn run(args: SqlArgs) -> Result<(), Failure> {
    let client = args.remote.client()?;
    let format = if args.json { "json" } else { &args.format };
    if let Some(sql) = &args.statement {
        say(&ask(&client, &args.db, format, sql)?);
        return Ok(());
    }
    let mut editor = DefaultEditor::new()?;
    say("SQL ends with ; and Enter. \\q or Ctrl-D leaves, \\h helps, SHOW TABLES; lists tables.");
    let mut statement = String::new();
    loop {
        let prompt = if statement.is_empty() { "millrace> " } else { "      -> " };
        match editor.readline(prompt) {
            Ok(line) if statement.is_empty() && matches!(line.trim(), "\\q" | "exit" | "quit") => {
                return Ok(());
            }
            Ok(line) if statement.is_empty() && line.trim_start().starts_with('\\') => {
                say(HELP);
            }
            Ok(line) => {
                statement.push_str(&line);
                statement.push('\n');
                if statement.trim_end().ends_with(';') {
                    let sql = statement.trim().trim_end_matches(';').to_owned();
                    statement.clear();
                    drop(editor.add_history_entry(&sql));
                    match ask(&client, &args.db, format, &sql) {
                        Ok(table) => say(&table),
                        Err(Failure(why)) => say_error(&why),
                    }
                }
            }
            Err(ReadlineError::Interrupted) => statement.clear(),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
