//! `millrace plan`, `millrace hold` and `millrace delete`: what is kept, what must be, what goes.
//!
//! Plans and holds can be set on a stopped server's folder; what needs the files themselves
//! (preview, confirm, delete) needs a server that runs.

use clap::{Args, Subcommand};
use millrace_control::{Plan, Principal, TenantLimits};
use serde_json::{Value, json};

use super::{
    Failure, Remote,
    manage::{Target, check_name, lines, text},
    say,
};
use crate::api::{admin, retention};

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// `millrace plan …`
#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// List all plans.
    #[command(after_help = "Example:\n  millrace plan list --data-dir ./data")]
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Make a plan, or another one of the same name; tenants that have it keep their terms.
    #[command(
        after_help = "Example:\n  millrace plan define press-shop --raw-days 400 --rollup-days 3653 --data-dir ./data"
    )]
    Define {
        /// 1 to 63 of a-z 0-9 -, beginning with a letter.
        name: String,
        /// Days that rows are kept, by their time; for ever if left out.
        #[arg(long, value_name = "DAYS")]
        raw_days: Option<u32>,
        /// Days that rollups are kept; for ever if left out.
        #[arg(long, value_name = "DAYS")]
        rollup_days: Option<u32>,
        /// Days on fast storage; all of them if left out.
        #[arg(long, value_name = "DAYS")]
        hot_days: Option<u32>,
        /// Rows per second of a tenant without a limit of its own.
        #[arg(long, value_name = "ROWS")]
        rows_per_s: Option<u64>,
        /// Bytes per second of the same.
        #[arg(long, value_name = "BYTES")]
        bytes_per_s: Option<u64>,
        /// New series per table and UTC day of the same.
        #[arg(long, value_name = "SERIES")]
        series_per_day: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Set a tenant's plan. What a shorter one takes is shown for 30 days, kept for 7 more, and
    /// then gone.
    #[command(
        after_help = "Example:\n  millrace plan set acme starter --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Set {
        /// The tenant.
        tenant: String,
        /// The plan.
        plan: String,
        #[command(flatten)]
        target: Target,
    },
    /// Let one table keep less than the plan, or with no --days what the plan says.
    #[command(
        after_help = "Example:\n  millrace plan table acme debug_events --days 30 --data-dir ./data"
    )]
    Table {
        /// The tenant.
        tenant: String,
        /// The table.
        table: String,
        /// Its database.
        #[arg(long, default_value = "default")]
        db: String,
        /// Days that its rows are kept.
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
        #[command(flatten)]
        target: Target,
    },
    /// Show what is kept of a tenant, since when, and what is announced.
    #[command(after_help = "Example:\n  millrace plan show acme --data-dir ./data")]
    Show {
        /// The tenant.
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Say which files of a tenant go and when: by its own plan, or if it got another one now.
    #[command(
        after_help = "Example:\n  millrace plan preview acme --plan free --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Preview {
        /// The tenant.
        tenant: String,
        /// As if this plan were set now.
        #[arg(long)]
        plan: Option<String>,
        /// Days to look ahead.
        #[arg(long, value_name = "DAYS", default_value_t = 38)]
        days: u32,
        #[command(flatten)]
        target: Target,
    },
    /// Answer a pass that would drop more than ageing explains, or the alarm about the clock.
    #[command(
        after_help = "Example:\n  millrace plan confirm acme --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Confirm {
        /// The tenant.
        #[arg(required_unless_present = "clock", conflicts_with = "clock")]
        tenant: Option<String>,
        /// The server's clock is right, whatever its history says.
        #[arg(long)]
        clock: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// `millrace hold …`
#[derive(Debug, Subcommand)]
pub(crate) enum HoldCommand {
    /// Place a legal hold: nothing that it names is dropped or deleted.
    #[command(
        after_help = "Example:\n  millrace hold add acme --table cpu --reason 'case 2026-117' --data-dir ./data"
    )]
    Add {
        /// The tenant.
        tenant: String,
        /// One table; everything if left out.
        #[arg(long)]
        table: Option<String>,
        /// Its database.
        #[arg(long, default_value = "default")]
        db: String,
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
    /// List a tenant's holds, released ones too.
    #[command(after_help = "Example:\n  millrace hold list acme --data-dir ./data")]
    List {
        /// The tenant.
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Release a hold.
    #[command(after_help = "Example:\n  millrace hold remove acme ID --data-dir ./data")]
    Remove {
        /// The tenant.
        tenant: String,
        /// The hold.
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

/// `millrace delete`
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// `DELETE FROM table WHERE …` by tags and time, or `DROP TABLE table`.
    statement: String,
    /// The database.
    #[arg(long, default_value = "default")]
    db: String,
    #[command(flatten)]
    remote: Remote,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const RUNNING: &str = "this needs a server that runs: --url URL";

fn running(_: &crate::startup::Control) -> Result<Value, crate::api::Problem> {
    Err(crate::api::Problem::new(crate::api::Code::BadParameter, RUNNING))
}

fn number(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

fn days(value: &Value, key: &str) -> String {
    number(value, key).map_or_else(|| "for ever".to_owned(), |n| format!("{n} days"))
}

/// A moment as UTC, to the second; people read it.
fn moment(ns: Option<i64>) -> String {
    let Some(ns) = ns else { return "-".to_owned() };
    let (day, second) = (ns.div_euclid(DAY_NS), ns.rem_euclid(DAY_NS) / 1_000_000_000);
    // Days since 1970 to a date, after Howard Hinnant's days_from_civil, the other way round.
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02}")
}

fn one_plan(plan: &Value) -> String {
    format!(
        "{}  rows {}  rollups {}  fast storage {}",
        text(plan, "name"),
        days(plan, "raw_days"),
        days(plan, "rollup_days"),
        days(plan, "hot_days")
    )
}

fn one_hold(hold: &Value) -> String {
    let table = hold
        .get("table")
        .and_then(Value::as_array)
        .map(|t| t.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("."));
    let released = hold.get("released").and_then(Value::as_array).map(|r| {
        let at = moment(r.first().and_then(Value::as_i64));
        format!("  released {at} by {}", r.get(1).and_then(Value::as_str).unwrap_or_default())
    });
    format!(
        "{}  {}  since {} by {}: {}{}",
        text(hold, "id"),
        table.unwrap_or_else(|| "everything".to_owned()),
        moment(number(hold, "since_ns")),
        text(hold, "by"),
        text(hold, "reason"),
        released.unwrap_or_default()
    )
}

fn shown(value: &Value) -> String {
    let mut out = vec![
        format!("tenant   {}", text(value, "tenant")),
        format!("plan     {}", text(value, "plan")),
        format!("rows     {}", days(value, "raw_days")),
    ];
    let list = |key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    for table in list("tables") {
        let name = format!("{}.{}", text(&table, "database"), text(&table, "table"));
        out.push(format!("table    {name}: {}", days(&table, "days")));
    }
    for terms in list("history") {
        let from = number(&terms, "from_ns");
        let from = from.map_or_else(|| "the next start".to_owned(), |ns| moment(Some(ns)));
        let what = format!("{} ({})", text(&terms, "plan"), days(&terms, "raw_days"));
        out.push(format!("since    {from}: {what}, by {}", text(&terms, "by")));
    }
    if let Some(countdown) = value.get("countdown").filter(|c| !c.is_null()) {
        out.push(format!(
            "shorter  hidden from {}, dropped from {} on",
            moment(number(countdown, "hides_ns")),
            moment(number(countdown, "drops_ns"))
        ));
    }
    for hold in list("holds") {
        out.push(format!("hold     {}", one_hold(&hold)));
    }
    if let Some(waits) = value.get("waits_for_confirmation").filter(|w| !w.is_null()) {
        out.push(format!(
            "WAITS    {} files, {} rows, {} of {} bytes would go: millrace plan confirm {}",
            number(waits, "files").unwrap_or(0),
            number(waits, "rows").unwrap_or(0),
            number(waits, "bytes").unwrap_or(0),
            number(waits, "bytes_all").unwrap_or(0),
            text(value, "tenant")
        ));
    }
    if let Some(clock) = value.get("clock") {
        let ahead = number(clock, "wall_ahead_ns").unwrap_or(0);
        let behind = number(clock, "wall_behind_ns").unwrap_or(0);
        if ahead > 0 || behind > 3_600_000_000_000 {
            out.push(format!(
                "CLOCK    the wall clock is {} s {}; retention goes by {}",
                ahead.max(behind) / 1_000_000_000,
                if ahead > 0 { "ahead" } else { "behind" },
                moment(number(clock, "trusted_ns"))
            ));
        }
    }
    out.join("\n")
}

fn forecast(value: &Value) -> String {
    let files = value.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
    if files.is_empty() {
        return "nothing goes".to_owned();
    }
    let mut out = Vec::new();
    for table in value.get("tables").and_then(Value::as_array).into_iter().flatten() {
        out.push(format!(
            "{}.{}: {} files, {} rows, {} bytes, {}",
            text(table, "database"),
            text(table, "table"),
            number(table, "files").unwrap_or(0),
            number(table, "rows").unwrap_or(0),
            number(table, "bytes").unwrap_or(0),
            number(table, "first_ns")
                .map_or("kept by a hold".to_owned(), |ns| format!("from {} on", moment(Some(ns)))),
        ));
    }
    out.push("goes at              table             rows from            to                   rows  bytes".to_owned());
    for file in &files {
        let at = number(file, "at_ns");
        out.push(format!(
            "{:19}  {:16}  {}  {}  {}  {}",
            at.map_or("held".to_owned(), |ns| moment(Some(ns))),
            text(file, "table"),
            moment(number(file, "from_ns")),
            moment(number(file, "to_ns")),
            number(file, "rows").unwrap_or(0),
            number(file, "bytes").unwrap_or(0)
        ));
    }
    if let Some(more @ 1..) = number(value, "files_left_out") {
        out.push(format!("… and {more} more files"));
    }
    out.join("\n")
}

pub(crate) fn plan(command: PlanCommand) -> Result<(), Failure> {
    match command {
        PlanCommand::List { target } => {
            let all = target.work(
                |c| retention::list_plans(&c.catalog, &Principal::Operator),
                |c| c.get("/api/v1/plans"),
            )?;
            target.print(&all, |a| lines(a, one_plan));
        }
        PlanCommand::Define {
            name,
            raw_days,
            rollup_days,
            hot_days,
            rows_per_s,
            bytes_per_s,
            series_per_day,
            target,
        } => {
            check_name(&name)?;
            let limits = TenantLimits { rows_per_s, bytes_per_s, series_per_day };
            let plan = Plan { name, raw_days, rollup_days, hot_days, limits };
            let body = json!({ "raw_days": raw_days, "rollup_days": rollup_days, "hot_days": hot_days, "limits": limits });
            let path = format!("/api/v1/plans/{}", plan.name);
            let made = target.work(
                |c| retention::define_plan(&c.catalog, &Principal::Operator, plan),
                |c| c.put(&path, &body),
            )?;
            target.print(&made, one_plan);
        }
        PlanCommand::Set { tenant, plan, target } => {
            check_name(&tenant)?;
            let set = target.work(
                |c| {
                    let operator = &Principal::Operator;
                    retention::set_plan(&c.catalog, operator, &tenant, &plan, None)?;
                    let scope = admin::administer(&c.catalog, operator, Some(&tenant))?;
                    retention::show(&c.catalog, scope)
                },
                |c| c.put(&format!("/api/v1/tenants/{tenant}/plan"), &json!({ "plan": plan })),
            )?;
            target.print(&set, shown);
        }
        PlanCommand::Table { tenant, table, db, days, target } => {
            let set = target.work(
                |c| {
                    let operator = &Principal::Operator;
                    let scope = admin::administer(&c.catalog, operator, Some(&tenant))?;
                    let name = (db.as_str(), table.as_str());
                    retention::shorten(&c.catalog, scope, operator, name, days, None)?;
                    retention::show(&c.catalog, scope)
                },
                |c| {
                    let body =
                        json!({ "tenant": tenant, "database": db, "table": table, "days": days });
                    c.put("/api/v1/retention/tables", &body)
                },
            )?;
            target.print(&set, shown);
        }
        PlanCommand::Show { tenant, target } => {
            check_name(&tenant)?;
            let all = target.work(
                |c| {
                    let scope = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    retention::show(&c.catalog, scope)
                },
                |c| c.get(&format!("/api/v1/retention?tenant={tenant}")),
            )?;
            target.print(&all, shown);
        }
        PlanCommand::Preview { tenant, plan, days, target } => {
            check_name(&tenant)?;
            let mut path = format!("/api/v1/retention/preview?tenant={tenant}&days={days}");
            if let Some(plan) = plan {
                check_name(&plan)?;
                path = format!("{path}&plan={plan}");
            }
            let all = target.work(running, |c| c.get(&path))?;
            target.print(&all, forecast);
        }
        PlanCommand::Confirm { tenant, clock, target } => {
            let body = json!({ "tenant": tenant, "clock": clock });
            let done = target.work(running, |c| c.post("/api/v1/retention/confirm", &body))?;
            target.print(&done, |d| match number(d, "files") {
                Some(files) => format!(
                    "{files} files with {} rows go with the next pass",
                    number(d, "rows").unwrap_or(0)
                ),
                None => format!("retention goes by {}", moment(number(d, "trusted_ns"))),
            });
        }
    }
    Ok(())
}

pub(crate) fn hold(command: HoldCommand) -> Result<(), Failure> {
    match command {
        HoldCommand::Add { tenant, table, db, reason, target } => {
            let body =
                json!({ "tenant": tenant, "database": db, "table": table, "reason": reason });
            let made = target.work(
                |c| {
                    let operator = &Principal::Operator;
                    let scope = admin::administer(&c.catalog, operator, Some(&tenant))?;
                    let table = table.map(|table| (db, table));
                    let hold = retention::add_hold(&c.catalog, scope, operator, table, &reason)?;
                    Ok(json!(hold))
                },
                |c| c.post("/api/v1/holds", &body),
            )?;
            target.print(&made, one_hold);
        }
        HoldCommand::List { tenant, target } => {
            check_name(&tenant)?;
            let all = target.work(
                |c| {
                    let scope = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    Ok(json!(c.catalog.holds(scope.tenant())))
                },
                |c| c.get(&format!("/api/v1/holds?tenant={tenant}")),
            )?;
            target.print(&all, |a| lines(a, one_hold));
        }
        HoldCommand::Remove { tenant, id, target } => {
            check_name(&tenant)?;
            let done = target.work(
                |c| {
                    let operator = &Principal::Operator;
                    let scope = admin::administer(&c.catalog, operator, Some(&tenant))?;
                    retention::release_hold(&c.catalog, scope, operator, &id)?;
                    Ok(json!({ "released": id }))
                },
                |c| c.delete(&format!("/api/v1/holds/{id}?tenant={tenant}")).map(|()| Vec::new()),
            )?;
            target.print(&done, |_| format!("hold {id} is released"));
        }
    }
    Ok(())
}

pub(crate) fn delete(args: DeleteArgs) -> Result<(), Failure> {
    let body = json!({ "db": args.db, "q": args.statement });
    let done: Value =
        serde_json::from_slice(&args.remote.client()?.post("/api/v1/delete", &body)?)?;
    if args.json {
        say(&done.to_string());
        return Ok(());
    }
    let dropped = done.get("dropped").and_then(Value::as_bool).unwrap_or(false);
    let files = number(&done, "files").unwrap_or(0);
    say(&if dropped {
        format!("table {} is dropped", text(&done, "table"))
    } else {
        format!("the rows are deleted; {files} files are rewritten without them in the background")
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_date() {
        for (s, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_767_225_600, "2026-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(moment(Some(s * 1_000_000_000)), text);
        }
        assert_eq!(moment(None), "-");
    }
}
