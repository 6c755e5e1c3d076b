//! A forwarder's life with the real server: renewal, replacement, and what `check` says.

use std::{process::Command, time::Duration};

use millrace_tests::{Client, Forwarder, World, ledger, process, process::PATIENCE};

use crate::ledger_lines;

const DB: &str = "default";
const TABLE: &str = "edge";

/// Asks until so many rows are there.
fn until(client: &Client, rows: usize) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let found = ledger::found(client, DB, TABLE).len();
        if found >= rows {
            assert_eq!(found, rows);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{found} of {rows} rows arrived");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Runs `check`: its exit status and what it says.
fn check(command: &mut Command) -> (Option<i32>, serde_json::Value) {
    let output = command.arg("--json").output().expect("it starts");
    let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), said)
}

/// Level and words of an area.
fn area(said: &serde_json::Value, name: &str) -> (String, String) {
    let all = said.as_array().unwrap_or_else(|| panic!("a list, not {said}"));
    let found = all.iter().find(|f| f["area"] == name).unwrap_or_else(|| panic!("{name}: {said}"));
    let text = |member: &str| found[member].as_str().unwrap().to_owned();
    (text("level"), format!("{} {}", text("said"), text("do")))
}

#[test]
fn e3_a_renewed_certificate_delivers_and_the_old_key_is_gone_from_the_folder() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    for round in 1..=2 {
        process::run("millrace-edge renew", &mut edge.command("renew"));
        let folder = edge.folder();
        assert!(folder.join(format!("device-{round}.key")).exists());
        assert!(!folder.join("device.key").exists());
        edge.start();
        let from = 1 + (round - 1) * 50;
        assert!(edge.process().write(ledger_lines(TABLE, 1, from, 50).as_bytes()));
        until(&client, usize::try_from(round * 50).unwrap());
        // While it runs it renews by itself; nobody else may.
        let (fine, _, said) = process::attempt(&mut edge.command("renew"));
        assert!(!fine && said.contains("in use"), "{said}");
        edge.kill9();
    }
}

#[test]
fn e3_e4_a_new_box_is_the_same_device_and_the_old_one_is_out_at_once() {
    let (world, client) = World::with_tenant();
    let mut old = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    old.start();
    assert!(old.process().write(ledger_lines(TABLE, 1, 1, 50).as_bytes()));
    until(&client, 50);
    let id = old.device();
    let said = world.admin(&["device", "replace", &id, "--tenant", "acme", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let code = said["code"].as_str().unwrap();
    let mut new = Forwarder::enrol_with(&world, code, &["--source", "stdin"]);
    assert_eq!(new.device(), id);
    // The old box goes on collecting; nothing of it is taken any more.
    assert!(old.process().write(ledger_lines(TABLE, 2, 1, 50).as_bytes()));
    new.start();
    assert!(new.process().write(ledger_lines(TABLE, 3, 1, 50).as_bytes()));
    until(&client, 100);
    let (code, said) = check(&mut old.command("check"));
    assert_eq!((code, area(&said, "server").0.as_str()), (Some(2), "wrong"), "{said}");
    until(&client, 100);
    let listed = world.admin(&["device", "list", "--tenant", "acme", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "one logical device");
}

#[test]
fn check_tells_a_healthy_device_from_one_without_server_and_one_that_is_revoked() {
    let (mut world, _client) = World::with_tenant();
    let edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    let look = || {
        let mut command = edge.command("check");
        command.args(["--source", "host-metrics"]);
        check(&mut command)
    };
    let (code, said) = look();
    assert_eq!(code, Some(0), "{said}");
    for name in ["disk", "clock", "identity", "certificate", "server", "host"] {
        assert_eq!(area(&said, name).0, "fine", "{said}");
    }
    world.kill9();
    let (code, said) = look();
    assert_eq!(code, Some(2));
    assert!(area(&said, "server").1.contains("is the server up"), "{said}");
    world.start();
    world.admin(&["device", "revoke", &edge.device(), "--tenant", "acme"]);
    let (code, said) = look();
    assert_eq!(code, Some(2));
    assert!(area(&said, "server").1.contains("revoked"), "{said}");
    let (fine, _, text) = process::attempt(edge.command("check").args(["--source", "what"]));
    assert!(!fine && text.contains("is not a source"), "{text}");
}
