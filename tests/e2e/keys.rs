//! Keys and seals as seen from outside: nothing readable on the disk, nothing unencrypted on the
//! wire, a root key that nobody else may read.

use std::{io::Read, io::Write, os::unix::fs::PermissionsExt};

use millrace_tests::{Forwarder, World, scan, wire};

use crate::NEW_YEAR_NS;

#[test]
fn d5_no_canary_is_readable_in_the_data_folder_the_queue_or_the_logs() {
    let (mut world, client) = World::with_tenant();
    let database = scan::CANARIES[0];
    let lines: String = (0..200).map(|i| scan::canary_lines(NEW_YEAR_NS + i)).collect();
    client.write(database, &lines);
    // A line that is refused is quoted to its sender, and nowhere else.
    drop(client.try_write(database, "canarytableqzx canarytextqzx=canaryvalueqzx\n"));
    drop(client.sql_as(
        database,
        "SELECT canaryfieldqzx FROM canarytableqzx WHERE nope = 'canaryvalueqzx'",
        "json",
    ));
    let found = client.sql(database, "SELECT text FROM canarytableqzx LIMIT 1");
    assert_eq!(found[0]["text"], "canarytextqzx");
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    let queued = scan::canary_lines(NEW_YEAR_NS + 1_000_000);
    edge.process().write(queued.as_bytes());
    let sees = |moment: &str, world: &World, edge: &Forwarder| {
        let mut seen = scan::canaries_below(world.folder());
        seen.extend(scan::canaries_below(&edge.folder()));
        seen.extend(
            scan::canaries_in(&world.said())
                .into_iter()
                .map(|c| format!("{c} in the server's log")),
        );
        seen.extend(
            scan::canaries_in(&edge.said())
                .into_iter()
                .map(|c| format!("{c} in the forwarder's log")),
        );
        assert!(seen.is_empty(), "{moment}: {seen:?}");
    };
    sees("while running", &world, &edge);
    world.kill9();
    edge.process().write(queued.as_bytes());
    sees("after a kill", &world, &edge);
    world.start();
    world.stop();
    edge.kill9();
    sees("after a flush", &world, &edge);
}

#[test]
fn d6_each_tenant_has_keys_of_its_own_and_the_root_key_is_private() {
    let (mut world, client) = World::with_tenant();
    client.write("default", &format!("m v=1 {NEW_YEAR_NS}"));
    world.stop();
    let key = world.data().join("keys").join("root.key");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut refused = world.launch();
    let status = refused.wait();
    assert!(!status.success());
    assert!(refused.text().contains("root.key"), "{}", refused.text());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    world.start();
    assert_eq!(client.number("default", "SELECT count(*) AS n FROM m"), 1);
}

/// A new SoftHSM token for this world: its folder, and the file with its PIN.
fn token(world: &mut World) -> (std::path::PathBuf, std::path::PathBuf) {
    let tokens = world.folder().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let conf = world.folder().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
    std::fs::write(&conf, text).unwrap();
    world.environment("SOFTHSM2_CONF", &conf.display().to_string());
    let mut make = std::process::Command::new("softhsm2-util");
    make.args(["--init-token", "--free", "--label", "e2e", "--so-pin", "4711", "--pin", "0815"]);
    let made = make.env("SOFTHSM2_CONF", &conf).output();
    let made = made.expect("softhsm2-util is missing: install the Debian package softhsm2");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pin = world.folder().join("pin");
    std::fs::write(&pin, "0815\n").unwrap();
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600)).unwrap();
    (tokens, pin)
}

#[test]
fn d6_the_root_key_may_live_in_a_pkcs11_token_and_without_it_nothing_opens() {
    let mut world = World::empty();
    let (tokens, pin) = token(&mut world);
    let pin = pin.display().to_string();
    world.settings(&[
        "--pkcs11-module",
        "/usr/lib/softhsm/libsofthsm2.so",
        "--pkcs11-token",
        "e2e",
        "--pkcs11-pin-file",
        &pin,
    ]);
    world.start();
    assert!(!world.data().join("keys").join("root.key").exists());
    world.tenant("acme");
    let client = world.client(Some(&world.token("acme", "read,write")));
    client.write("default", &format!("m v=1 {NEW_YEAR_NS}"));
    world.kill9();
    // The folder knows where its key is: for commands on it, and for later starts.
    world.settings(&[]);
    world.tenant("bolt");
    world.start();
    assert_eq!(client.number("default", "SELECT count(*) AS n FROM m"), 1);
    world.stop();
    let away = world.folder().join("away");
    std::fs::rename(&tokens, &away).unwrap();
    std::fs::create_dir(&tokens).unwrap();
    let mut refused = world.launch();
    assert!(!refused.wait().success());
    assert!(refused.text().contains("token `e2e`"), "{}", refused.text());
    std::fs::remove_dir(&tokens).unwrap();
    std::fs::rename(&away, &tokens).unwrap();
    world.start();
    assert_eq!(client.number("default", "SELECT count(*) AS n FROM m"), 1);
}

#[test]
fn e2_there_is_no_answer_without_tls_and_none_to_a_client_that_trusts_another_ca() {
    let (world, client) = World::with_tenant();
    let mut plain = wire::tcp(&client.base).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&answer));
    let other =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap().cert.pem();
    let stranger = millrace_tests::Client::new(&client.base, &other, None);
    assert!(stranger.send("GET", "/health", &[], b"").is_err());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut stream =
            wire::connect(&client.base, wire::settings(&world.ca(), &[version])).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert_eq!(wire::status(&answer), 200, "{version:?}");
    }
}

#[test]
fn e2_a_tls_1_1_hello_is_refused() {
    let (_world, client) = World::with_tenant();
    // A client hello of TLS 1.1 with one suite of its time.
    let mut body = vec![0x03, 0x02];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0xc0, 0x13, 1, 0]);
    let mut hello = vec![22, 3, 1];
    let len = u16::try_from(body.len()).unwrap();
    hello.extend_from_slice(&(len + 4).to_be_bytes());
    hello.extend_from_slice(&[1, 0]);
    hello.extend_from_slice(&len.to_be_bytes());
    hello.extend_from_slice(&body);
    let mut socket = wire::tcp(&client.base).unwrap();
    socket.write_all(&hello).unwrap();
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer));
    // An alert (21) and the end, never a server hello (22).
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
}

#[test]
fn a9_tokens_do_not_stand_in_process_arguments_logs_or_the_data_folder() {
    let (world, client) = World::with_tenant();
    let token = client.token.clone().unwrap();
    client.write("default", &format!("m v=1 {NEW_YEAR_NS}"));
    let wrong = client.with_token(Some(&format!("{token}x")));
    assert_eq!(wrong.sql_as("default", "SELECT 1", "json").status, 401);
    let secret = token.split('_').nth(2).expect("prefix, id, secret, check").as_bytes();
    assert!(!scan::holds(&world.said(), secret), "the log holds a token");
    let said = std::fs::read(format!("/proc/{}/cmdline", world.server().process.id())).unwrap();
    assert!(!scan::holds(&said, secret));
    for file in scan::files(&world.data()) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        assert!(!scan::holds(&bytes, secret), "{} holds a token", file.display());
    }
}

#[test]
fn d1_a_start_without_a_file_that_was_there_is_refused_by_name_and_changes_nothing() {
    let (mut world, client) = World::with_tenant();
    client.write("default", &format!("m v=1 {NEW_YEAR_NS}"));
    world.kill9();
    for name in ["control/catalog", "keys/ledger.json", "shard/0/m"] {
        let (path, away) = (world.data().join(name), world.folder().join("away"));
        std::fs::rename(&path, &away).unwrap();
        let mut refused = world.launch();
        assert!(!refused.wait().success(), "{name}");
        assert!(refused.text().contains(&format!("{name} is missing")), "{}", refused.text());
        assert!(!path.exists(), "{name} was made anew");
        std::fs::rename(&away, &path).unwrap();
    }
    world.start();
    assert_eq!(client.number("default", "SELECT count(*) AS n FROM m"), 1);
}
