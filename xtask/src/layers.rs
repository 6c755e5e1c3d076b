//! The directions of dependencies, checked against what Cargo really resolved.
//!
//! Owns: who may use whom inside the workspace, what must not be in whose tree, and which crates
//! may exist in one version only.
//! The reasons stand in docs/architecture.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

use crate::{
    report::{Outcome, Problem},
    tree,
};

/// Which of our crates each of our crates may use in its shipped code. Crates that ship nothing
/// (tests, benches, xtask) are free, except that `tests/sim` must stay quick to build.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("millrace-platform", &[]),
    ("millrace-protocol", &[]),
    ("millrace-crypto", &["millrace-platform"]),
    ("millrace-wal", &["millrace-platform", "millrace-crypto"]),
    ("millrace-control", &["millrace-platform", "millrace-crypto", "millrace-protocol"]),
    (
        "millrace-storage",
        &["millrace-platform", "millrace-crypto", "millrace-protocol", "millrace-wal"],
    ),
    (
        "millrace-query",
        &[
            "millrace-platform",
            "millrace-crypto",
            "millrace-protocol",
            "millrace-storage",
            "millrace-control",
        ],
    ),
    (
        "millrace-edge",
        &["millrace-platform", "millrace-crypto", "millrace-protocol", "millrace-wal"],
    ),
    (
        "millrace",
        &[
            "millrace-platform",
            "millrace-crypto",
            "millrace-protocol",
            "millrace-wal",
            "millrace-control",
            "millrace-storage",
            "millrace-query",
            // Only the demo starts a forwarder; see docs/decisions/0003-demo-embeds-forwarder.md.
            "millrace-edge",
        ],
    ),
];

/// What must not be anywhere in the tree of dependencies of a package.
const NOT_IN: [(&str, &[&str]); 4] = [
    ("millrace-edge", &["datafusion", "parquet", "millrace-storage", "millrace-query"]),
    ("millrace-storage", &["datafusion", "axum", "tonic"]),
    ("millrace-control", &["datafusion", "parquet", "axum", "tonic", "hyper"]),
    ("millrace-sim", &["datafusion"]),
];

/// Crates whose types cross our own borders, so that a second version is a second, foreign type.
const ONE_VERSION: [&str; 12] = [
    "arrow",
    "arrow-array",
    "arrow-schema",
    "arrow-flight",
    "parquet",
    "object_store",
    "tonic",
    "prost",
    "rustls",
    "axum",
    "hyper",
    "datafusion",
];

/// The only file that may name the forwarder's library inside the server.
const DEMO: &str = "demo";

struct Graph {
    names: BTreeMap<String, String>,
    uses: BTreeMap<String, BTreeSet<String>>,
    ours: BTreeSet<String>,
}

impl Graph {
    fn read(metadata: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|p| (text(&p["id"]), text(&p["name"])))
            .collect();
        let ours = list(&metadata["workspace_members"]).iter().map(text).collect();
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let entry = uses.entry(text(&node["id"])).or_default();
            for dep in list(&node["deps"]) {
                // A dependency that exists for tests only is not part of what is shipped.
                let shipped = list(&dep["dep_kinds"]).iter().any(|k| k["kind"] != "dev");
                if shipped {
                    entry.insert(text(&dep["pkg"]));
                }
            }
        }
        Self { names, uses, ours }
    }

    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.names.get(id).map_or(id, String::as_str)
    }

    fn id_of(&self, name: &str) -> Option<&String> {
        self.ours.iter().find(|id| self.name(id) == name)
    }

    /// Everything below `id`, each with the package that pulled it in.
    fn below<'a>(&'a self, id: &'a str) -> BTreeMap<&'a str, &'a str> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        let mut next = vec![id];
        while let Some(at) = next.pop() {
            for dep in self.uses.get(at).into_iter().flatten() {
                if !seen.contains_key(dep.as_str()) {
                    seen.insert(dep, at);
                    next.push(dep);
                }
            }
        }
        seen
    }
}

/// Whether `name` is `family` or one of its parts: `datafusion` and `datafusion-expr`.
fn belongs(name: &str, family: &str) -> bool {
    name == family || name.strip_prefix(family).is_some_and(|rest| rest.starts_with('-'))
}

fn findings(metadata: &Value) -> Vec<String> {
    let graph = Graph::read(metadata);
    let mut found = Vec::new();
    for (package, allowed) in MAY_USE {
        let Some(id) = graph.id_of(package) else {
            found.push(format!("`{package}` is not in the workspace: update xtask/src/layers.rs"));
            continue;
        };
        for dep in graph.uses.get(id).into_iter().flatten().filter(|d| graph.ours.contains(*d)) {
            let name = graph.name(dep);
            if !allowed.contains(&name) {
                found.push(format!("`{package}` must not use `{name}`: that turns a layer around"));
            }
        }
    }
    for (package, forbidden) in NOT_IN {
        let Some(id) = graph.id_of(package) else { continue };
        for (dep, by) in graph.below(id) {
            if let Some(family) = forbidden.iter().find(|f| belongs(graph.name(dep), f)) {
                found.push(format!(
                    "`{package}` must stay free of {family}, but `{}` brings `{}`",
                    graph.name(by),
                    graph.name(dep)
                ));
            }
        }
    }
    for id in &graph.ours {
        let package = graph.name(id);
        let direct = graph.uses.get(id).into_iter().flatten();
        for dep in direct.filter(|d| belongs(graph.name(d), "datafusion")) {
            if package != "millrace-query" {
                found.push(format!("`{package}` uses `{}`: only `query` may", graph.name(dep)));
            }
        }
    }
    for one in ONE_VERSION {
        let versions = graph.names.values().filter(|n| *n == one).count();
        if versions != 1 {
            found.push(format!("`{one}` is locked in {versions} versions instead of one"));
        }
    }
    found
}

fn metadata() -> Result<Value, Problem> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(tree::root())
        .output()?;
    if !output.status.success() {
        return Err(Problem(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| Problem(format!("cargo metadata: {e}")))
}

/// The server knows the forwarder only inside its demo.
fn forwarder_outside_the_demo() -> Result<Vec<String>, Problem> {
    let mut found = Vec::new();
    for file in tree::files_with("rs")? {
        let in_demo = file.file_stem().is_some_and(|s| s == DEMO)
            || file.components().any(|c| c.as_os_str() == DEMO);
        let is_bin_test = file.starts_with("server/tests");
        if !file.starts_with("server") || in_demo || is_bin_test {
            continue;
        }
        if tree::text(&file)?.is_some_and(|t| t.contains("millrace_edge::")) {
            found.push(format!("{}: only the demo may start a forwarder", file.display()));
        }
    }
    Ok(found)
}

fn all() -> Result<Vec<String>, Problem> {
    let mut found = findings(&metadata()?);
    found.extend(forwarder_outside_the_demo()?);
    Ok(found)
}

/// The command.
pub(crate) fn run() -> Outcome {
    let found = all()?;
    for line in &found {
        println!("{line}");
    }
    println!("layers: {} findings", found.len());
    if found.is_empty() { Ok(()) } else { Err(Problem(format!("{} findings", found.len()))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn layers_point_one_way_and_shared_crates_exist_once() {
        let found = all().unwrap();
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }

    /// A workspace where `from` uses `to`, and nothing else.
    fn workspace(from: &str, to: &str) -> Value {
        let dep = json!({ "pkg": to, "dep_kinds": [{ "kind": null }] });
        json!({
            "packages": [{ "id": from, "name": from }, { "id": to, "name": to }],
            "workspace_members": [from, to],
            "resolve": { "nodes": [{ "id": from, "deps": [dep] }, { "id": to, "deps": [] }] },
        })
    }

    #[test]
    fn a_layer_turned_around_is_found() {
        let found = findings(&workspace("millrace-wal", "millrace-storage"));
        assert!(found.iter().any(|f| f.contains("`millrace-wal` must not use `millrace-storage`")));
    }

    #[test]
    fn e11_datafusion_below_the_forwarder_is_found() {
        let found = findings(&workspace("millrace-edge", "datafusion-expr"));
        assert!(found.iter().any(|f| f.contains("`millrace-edge` must stay free of datafusion")));
        assert!(found.iter().any(|f| f.contains("only `query` may")));
    }

    #[test]
    fn names_of_a_family_are_recognised_and_lookalikes_are_not() {
        assert!(belongs("datafusion", "datafusion") && belongs("datafusion-expr", "datafusion"));
        assert!(!belongs("tonics", "tonic") && !belongs("parquet2", "parquet"));
    }
}
