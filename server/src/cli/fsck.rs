//! `millrace fsck`: checks a stopped server's folder and says what is wrong, by name.
//!
//! Owns: its arguments, the progress bar, what it prints and its exit status: 0 nothing is
//! damaged, 1 damage was found, 2 the check could not be done.
//! Never: changes what is stored; runs beside a server, whose lock it takes.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use millrace_control::Catalog;
use millrace_platform::disk::{Disk, RealDisk};
use millrace_storage::fsck::{self, Code, Finding, FsckConfig, Report};
use serde_json::{Value, json};

use super::{Failure, say, say_error};
use crate::startup;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// The stopped server's folder.
    #[arg(long, value_name = "DIR", env = "MILLRACE_DATA_DIR")]
    data_dir: PathBuf,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

/// Runs the command; see the module head for the exit status.
pub(crate) fn run(args: &FsckArgs) -> ExitCode {
    match check(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure(why)) => {
            say_error(&format!("millrace: {why}"));
            ExitCode::from(2)
        }
    }
}

fn check(args: &FsckArgs) -> Result<bool, Failure> {
    let dir = &args.data_dir;
    // Opening keys would make them in a folder that has none.
    if !RealDisk.exists(&dir.join("keys").join("ledger.json"))? {
        let dir = dir.display();
        return Err(Failure(format!("{dir} is no server's folder: it has no keys/ledger.json")));
    }
    let control = startup::control(dir, None)?;
    let config = FsckConfig {
        disk: Arc::clone(&control.disk),
        entropy: Arc::clone(&control.entropy),
        dir: dir.clone(),
        keys: Arc::clone(&control.ledger) as _,
    };
    let bar = progress_bar();
    let mut report = futures::executor::block_on(fsck::run(config, &mut |p| {
        bar.set_length(p.total);
        bar.set_position(p.done);
    }))?;
    bar.finish_and_clear();
    // The first start leaves a mark, so that a lost manifest is not taken for a new folder.
    if report.records == 0 && control.disk.exists(&dir.join(startup::STORED))? {
        report.findings.push(Finding {
            code: Code::ManifestChain,
            tenant: None,
            table: None,
            file: Some(startup::MANIFEST.into()),
            detail: "there is no manifest record, although the server has stored rows".into(),
        });
    }
    print(args.json, &report, &control.catalog);
    Ok(report.is_clean())
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} sections, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn print(as_json: bool, report: &Report, catalog: &Catalog) {
    let findings: Vec<Value> = report.findings.iter().map(|f| named(f, catalog)).collect();
    if as_json {
        let all = json!({
            "clean": report.is_clean(),
            "findings": findings,
            "manifest_records": report.records,
            "tables": report.tables,
            "series": report.series,
            "files": report.files,
            "rows": report.rows,
            "sealed_bytes": report.bytes,
            "log_frames": report.frames,
        });
        return say(&all.to_string());
    }
    for finding in &findings {
        say(&line(finding));
    }
    let damaged = report.findings.iter().filter(|f| f.code.is_damage()).count();
    let notices = report.findings.len() - damaged;
    say(&format!(
        "{} manifest records, {} tables, {} series, {} files with {} rows in {} sealed bytes, {} log frames: {damaged} damaged, {notices} notices",
        report.records,
        report.tables,
        report.series,
        report.files,
        report.rows,
        report.bytes,
        report.frames,
    ));
}

fn named(finding: &Finding, catalog: &Catalog) -> Value {
    let tenant = finding.tenant.map(|id| match catalog.tenant(id) {
        Ok(tenant) => tenant.name,
        Err(_) => id.to_string(),
    });
    json!({
        "code": finding.code.as_str(),
        "damage": finding.code.is_damage(),
        "tenant": tenant,
        "database": finding.table.as_ref().map(|t| &t.0),
        "table": finding.table.as_ref().map(|t| &t.1),
        "file": finding.file,
        "detail": finding.detail,
    })
}

/// `DAMAGE section.seal tenant=acme database=default table=cpu file=data/0/…: what`.
fn line(finding: &Value) -> String {
    let text = |name: &str| finding.get(name).and_then(Value::as_str).unwrap_or_default();
    let damage = finding.get("damage").and_then(Value::as_bool).unwrap_or(true);
    let mut out = format!("{} {}", if damage { "DAMAGE" } else { "notice" }, text("code"));
    for name in ["tenant", "database", "table", "file"] {
        if !text(name).is_empty() {
            out.push_str(&format!(" {name}={}", text(name)));
        }
    }
    format!("{out}: {}", text("detail"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_that_names_where() {
        let mut finding = json!({
            "code": "section.seal", "damage": true, "tenant": "acme", "database": "default",
            "table": "cpu", "file": "data/0/ab.b", "detail": "changed",
        });
        let expected =
            "DAMAGE section.seal tenant=acme database=default table=cpu file=data/0/ab.b: changed";
        assert_eq!(line(&finding), expected);
        for name in ["tenant", "database", "table"] {
            finding[name] = Value::Null;
        }
        finding["damage"] = false.into();
        assert_eq!(line(&finding), "notice section.seal file=data/0/ab.b: changed");
    }
}
