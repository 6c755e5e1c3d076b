//! Tenants, tokens, devices, status: on a folder or on a running server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use millrace_control::{Catalog, Principal, TenantLimits};
use millrace_platform::disk::{Disk, RealDisk};
use serde_json::{Value, json};

use super::{Failure, Remote, say};
use crate::{api::admin, startup};

/// A stopped server's folder, or a running server.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Data directory of a stopped server.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Whether a folder that holds nothing yet becomes a data directory.
    #[arg(skip)]
    make: bool,
}

/// `millrace tenant …`
#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Create a tenant and its keys.
    #[command(after_help = "Example:\n  millrace tenant create acme --data-dir ./data")]
    Create {
        /// 1 to 63 of a-z 0-9 -, beginning with a letter.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// List all tenants, with the limits that are their own.
    #[command(after_help = "Example:\n  millrace tenant list --data-dir ./data --json")]
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Show one tenant and its limits.
    #[command(after_help = "Example:\n  millrace tenant show acme --data-dir ./data")]
    Show {
        /// The tenant.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Set what a tenant may write; limits that are not named here are the server's defaults.
    #[command(
        after_help = "Example:\n  millrace tenant limits acme --rows-per-s 50000 --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Limits {
        /// The tenant.
        name: String,
        /// Rows per second; 0 is no limit.
        #[arg(long, value_name = "ROWS")]
        rows_per_s: Option<u64>,
        /// Uncompressed bytes per second; 0 is no limit.
        #[arg(long, value_name = "BYTES")]
        bytes_per_s: Option<u64>,
        /// New series per table and UTC day; 0 is no limit.
        #[arg(long, value_name = "SERIES")]
        series_per_day: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
}

/// `millrace token …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token; its text is shown once.
    #[command(
        after_help = "Example:\n  millrace token create --tenant acme --scope write,read --label dashboards --data-dir ./data"
    )]
    Create {
        /// The tenant.
        #[arg(long)]
        tenant: String,
        /// read, write, admin: separated by commas.
        #[arg(long)]
        scope: String,
        /// A name for people.
        #[arg(long, default_value = "")]
        label: String,
        #[command(flatten)]
        target: Target,
    },
    /// List a tenant's tokens, without their texts.
    #[command(after_help = "Example:\n  millrace token list --tenant acme --data-dir ./data")]
    List {
        /// The tenant.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// End a token at once.
    #[command(
        after_help = "Example:\n  millrace token revoke ID --tenant acme --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Revoke {
        /// The token's id.
        id: String,
        /// The tenant.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
}

/// `millrace device …`
#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Create a one-time claim code for a new device, good for 24 hours.
    #[command(
        after_help = "Example:\n  millrace device claim --tenant acme --name press-7 --data-dir ./data"
    )]
    Claim {
        /// The tenant.
        #[arg(long)]
        tenant: String,
        /// A name for people.
        #[arg(long, default_value = "")]
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// List a tenant's devices.
    #[command(
        after_help = "Example:\n  millrace device list --tenant acme --data-dir ./data --json"
    )]
    List {
        /// The tenant.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// Create a claim code with which a new box becomes this device; the old box's key is dead
    /// from then on.
    #[command(
        after_help = "Example:\n  millrace device replace ID --tenant acme --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Replace {
        /// The device's id.
        id: String,
        /// The tenant.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
    /// End a device's rights at once.
    #[command(
        after_help = "Example:\n  millrace device revoke ID --tenant acme --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Revoke {
        /// The device's id.
        id: String,
        /// The tenant.
        #[arg(long)]
        tenant: String,
        #[command(flatten)]
        target: Target,
    },
}

/// `millrace status`
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    remote: Remote,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Target {
    /// The same, allowed to make the folder a data directory.
    fn making(self) -> Self {
        Self { make: true, ..self }
    }

    /// Does the work on the folder or on the server; gives JSON either way.
    pub(super) fn work(
        &self,
        local: impl FnOnce(&startup::Control) -> Result<Value, crate::api::Problem>,
        remote: impl FnOnce(&super::client::Client) -> Result<Vec<u8>, Failure>,
    ) -> Result<Value, Failure> {
        match &self.data_dir {
            Some(dir) => {
                // A mistyped folder must not become a deployment of its own.
                if !self.make && !RealDisk.exists(&dir.join("keys"))? {
                    return Err(Failure(format!(
                        "{} is not a data directory: it has no folder `keys`; `millrace serve` and `millrace tenant create` make one",
                        dir.display()
                    )));
                }
                let control = startup::control(dir, None)?;
                local(&control).map_err(|p| Failure(p.detail))
            }
            None if self.remote.url.is_some() => {
                let body = remote(&self.remote.client()?)?;
                if body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&body)?) }
            }
            None => Err(Failure(
                "name a stopped server's folder (--data-dir DIR) or a running server (--url URL)"
                    .into(),
            )),
        }
    }

    pub(super) fn print(&self, answer: &Value, human: impl FnOnce(&Value) -> String) {
        say(&if self.json { answer.to_string() } else { human(answer) });
    }
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn lines(value: &Value, one: impl Fn(&Value) -> String) -> String {
    let all: Vec<String> = value.as_array().into_iter().flatten().map(one).collect();
    if all.is_empty() { "none".to_owned() } else { all.join("\n") }
}

/// Before it becomes part of a path.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    Catalog::check_name(name).map_err(|e| Failure(e.to_string()))
}

const LIMITS: [(&str, &str); 3] = [
    ("rows_per_s", "rows/s"),
    ("bytes_per_s", "bytes/s"),
    ("series_per_day", "new series per table and day"),
];

fn limit(limits: Option<&Value>, key: &str) -> Option<String> {
    let figure = limits?.get(key)?.as_u64()?;
    Some(if figure == 0 { "no limit".to_owned() } else { figure.to_string() })
}

/// The limits that a tenant has of its own, on one line.
fn own_limits(tenant: &Value) -> String {
    let of = |(key, unit): &(&str, &str)| {
        limit(tenant.get("limits"), key).map(|figure| format!("  {unit}: {figure}"))
    };
    LIMITS.iter().filter_map(of).collect()
}

/// One tenant over several lines.
fn one_tenant(tenant: &Value) -> String {
    let head = ["name", "id", "plan"].map(|key| format!("{key:28}  {}", text(tenant, key)));
    let of = |(key, unit): &(&str, &str)| {
        let own = limit(tenant.get("limits"), key);
        let counts = limit(tenant.get("effective_limits"), key);
        let shown = match (own, counts) {
            (Some(own), _) => own,
            (None, Some(counts)) => format!("{counts} (the server's default)"),
            (None, None) => "the server's default".to_owned(),
        };
        format!("{unit:28}  {shown}")
    };
    head.into_iter().chain(LIMITS.iter().map(of)).collect::<Vec<_>>().join("\n")
}

pub(crate) fn tenant(command: TenantCommand) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { name, target } => {
            let target = target.making();
            let made = target.work(
                |c| {
                    admin::make_tenant(&c.catalog, &c.ledger, &Principal::Operator, &name)
                        .map(|t| json!(t))
                },
                |c| c.post("/api/v1/tenants", &json!({ "name": name })),
            )?;
            target.print(&made, |m| format!("tenant {} ({})", text(m, "name"), text(m, "id")));
        }
        TenantCommand::List { target } => {
            let all = target.work(
                |c| admin::list_tenants(&c.catalog, &Principal::Operator),
                |c| c.get("/api/v1/tenants"),
            )?;
            target.print(&all, |a| {
                lines(a, |t| {
                    let plan = text(t, "plan");
                    let own = own_limits(t);
                    format!("{}  {}  plan {plan}{own}", text(t, "id"), text(t, "name"))
                })
            });
        }
        TenantCommand::Show { name, target } => {
            check_name(&name)?;
            let shown = target.work(
                |c| admin::show_tenant(&c.catalog, &Principal::Operator, &name, None),
                |c| c.get(&format!("/api/v1/tenants/{name}")),
            )?;
            target.print(&shown, one_tenant);
        }
        TenantCommand::Limits { name, rows_per_s, bytes_per_s, series_per_day, target } => {
            check_name(&name)?;
            let limits = TenantLimits { rows_per_s, bytes_per_s, series_per_day };
            let shown = target.work(
                |c| {
                    let operator = &Principal::Operator;
                    admin::limit_tenant(&c.catalog, operator, &name, limits)?;
                    admin::show_tenant(&c.catalog, operator, &name, None)
                },
                |c| {
                    let path = format!("/api/v1/tenants/{name}/limits");
                    c.put(&path, &json!(limits))
                },
            )?;
            target.print(&shown, one_tenant);
        }
    }
    Ok(())
}

pub(crate) fn token(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { tenant, scope, label, target } => {
            let names: Vec<&str> = scope.split(',').map(str::trim).collect();
            let made = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    admin::make_token(&c.catalog, own, scope.parse()?, &label)
                },
                |c| {
                    c.post(
                        "/api/v1/tokens",
                        &json!({ "tenant": tenant, "scopes": names, "label": label }),
                    )
                },
            )?;
            target.print(&made, |m| text(m, "token").to_owned());
        }
        TokenCommand::List { tenant, target } => {
            let all = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    Ok(admin::list_tokens(&c.catalog, own))
                },
                |c| c.get(&format!("/api/v1/tokens?tenant={tenant}")),
            )?;
            target.print(&all, |a| {
                lines(a, |t| {
                    format!(
                        "{}  {}  {}",
                        text(t, "id"),
                        t.get("scopes").map(Value::to_string).unwrap_or_default(),
                        text(t, "label")
                    )
                })
            });
        }
        TokenCommand::Revoke { id, tenant, target } => {
            let done = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    c.catalog.revoke_token(own, &id)?;
                    Ok(json!({ "revoked": id }))
                },
                |c| c.delete(&format!("/api/v1/tokens/{id}?tenant={tenant}")).map(|()| Vec::new()),
            )?;
            target.print(&done, |_| format!("token {id} is revoked"));
        }
    }
    Ok(())
}

pub(crate) fn device(command: DeviceCommand) -> Result<(), Failure> {
    match command {
        DeviceCommand::Claim { tenant, name, target } => {
            let made = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    admin::make_claim(&c.catalog, own, &name)
                },
                |c| c.post("/api/v1/claims", &json!({ "tenant": tenant, "name": name })),
            )?;
            target.print(&made, |m| text(m, "code").to_owned());
        }
        DeviceCommand::List { tenant, target } => {
            let all = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    Ok(admin::list_devices(&c.catalog, own))
                },
                |c| c.get(&format!("/api/v1/devices?tenant={tenant}")),
            )?;
            target.print(&all, |a| {
                lines(a, |d| {
                    let revoked = d.get("revoked").and_then(Value::as_bool).unwrap_or(false);
                    format!(
                        "{}  {}{}",
                        text(d, "id"),
                        text(d, "name"),
                        if revoked { "  revoked" } else { "" }
                    )
                })
            });
        }
        DeviceCommand::Replace { id, tenant, target } => {
            let made = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    admin::make_replacement(&c.catalog, own, &id)
                },
                |c| {
                    let path = format!("/api/v1/devices/{id}/replacement?tenant={tenant}");
                    c.post(&path, &json!({}))
                },
            )?;
            target.print(&made, |m| text(m, "code").to_owned());
        }
        DeviceCommand::Revoke { id, tenant, target } => {
            let done = target.work(
                |c| {
                    let own = admin::administer(&c.catalog, &Principal::Operator, Some(&tenant))?;
                    let device = id
                        .parse()
                        .map_err(|_| millrace_control::CatalogError::NotFound("device"))?;
                    c.catalog.revoke_device(own, device)?;
                    Ok(json!({ "revoked": id }))
                },
                |c| c.delete(&format!("/api/v1/devices/{id}?tenant={tenant}")).map(|()| Vec::new()),
            )?;
            target.print(&done, |_| format!("device {id} is revoked"));
        }
    }
    Ok(())
}

pub(crate) fn status(args: StatusArgs) -> Result<(), Failure> {
    let body = args.remote.client()?.get("/api/v1/status")?;
    let status: Value = serde_json::from_slice(&body)?;
    if args.json {
        say(&status.to_string());
        return Ok(());
    }
    let number = |key: &str| status.get(key).map(Value::to_string).unwrap_or_default();
    say(&format!(
        "version        {}\nlog position   {}\nrows in memory {} ({} bytes)\nlog on disk    {} bytes",
        text(&status, "version"),
        number("lsn"),
        number("memtable_rows"),
        number("memtable_bytes"),
        number("wal_bytes"),
    ));
    Ok(())
}
