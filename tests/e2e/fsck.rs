//! `millrace fsck` on folders that a real server wrote: clean, damaged, in use.

use std::process::Output;

use millrace_tests::World;
use serde_json::Value;

use crate::ledger_lines;

fn fsck(world: &World, more: &[&str]) -> (Option<i32>, Output) {
    let mut command = world.millrace(&["fsck", "--data-dir"]);
    let output = command.arg(world.data()).args(more).output().expect("millrace starts");
    (output.status.code(), output)
}

fn json(world: &World) -> (Option<i32>, Value) {
    let (status, output) = fsck(world, &["--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = serde_json::from_str(&text);
    (status, report.unwrap_or_else(|e| panic!("not JSON ({e}): {text}")))
}

#[test]
fn d1_fsck_is_clean_on_what_a_server_wrote_and_names_what_was_damaged() {
    let (mut world, client) = World::with_tenant();
    client.write("default", &ledger_lines("books", 1, 0, 500));
    let (status, output) = fsck(&world, &[]);
    assert_eq!(status, Some(2), "the server runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("in use by a running server"), "{said}");

    // A kill leaves rows in the log alone.
    world.kill9();
    let (status, report) = json(&world);
    assert_eq!(status, Some(0), "{report}");
    assert_eq!(report["clean"], true, "{report}");
    assert!(report["log_frames"].as_u64().unwrap() > 0, "{report}");

    // A stop leaves them in files.
    world.start();
    world.stop();
    let (status, report) = json(&world);
    assert_eq!(status, Some(0), "{report}");
    assert_eq!(report["rows"], 500, "{report}");
    let (status, output) = fsck(&world, &[]);
    assert_eq!(status, Some(0));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("with 500 rows") && said.contains("0 damaged"), "{said}");

    // One bit of one file.
    let folder = world.data().join("data").join("0");
    let object = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    let (status, report) = json(&world);
    assert_eq!(status, Some(1), "{report}");
    let finding = &report["findings"][0];
    assert_eq!(finding["code"], "section.seal", "{report}");
    assert_eq!((&finding["tenant"], &finding["table"]), (&"acme".into(), &"books".into()));
    let name = object.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(finding["file"], format!("data/0/{name}"));
    let (_, output) = fsck(&world, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("DAMAGE section.seal tenant=acme"), "{said}");
}

#[test]
fn fsck_of_a_folder_that_is_none_changes_nothing_and_says_so() {
    let world = World::empty();
    let (status, output) = fsck(&world, &[]);
    assert_eq!(status, Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is no server's folder"));
    assert!(!world.data().exists());
}
