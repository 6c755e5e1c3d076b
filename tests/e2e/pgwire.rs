//! PostgreSQL's protocol from below: bytes that no client would send, and what must not be seen.

use std::{sync::Arc, time::Duration};

use millrace_tests::{World, http, scan};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::NEW_YEAR_NS;

const PG: [&str; 2] = ["--pg-listen", "127.0.0.1:0"];

fn world() -> (World, String) {
    let mut world = World::empty();
    world.settings(&PG);
    world.tenant("acme");
    let token = world.token("acme", "read,write");
    world.start();
    world.client(Some(&token)).write("default", &format!("cpu,host=a n=1i {NEW_YEAR_NS}"));
    (world, token)
}

fn with_length(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = kind.into_iter().collect();
    out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend(body);
    out
}

const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

fn startup() -> Vec<u8> {
    with_length(None, b"\0\x03\0\0user\0ann\0database\0default\0\0")
}

fn query(sql: &str) -> Vec<u8> {
    with_length(Some(b'Q'), format!("{sql}\0").as_bytes())
}

async fn raw(world: &World) -> TcpStream {
    TcpStream::connect(world.pg()).await.unwrap()
}

/// Everything that comes until the other side ends, or says nothing for ten seconds.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut out = Vec::new();
    let reading = stream.read_to_end(&mut out);
    // However it ends, what came is what counts.
    drop(tokio::time::timeout(Duration::from_secs(10), reading).await);
    out
}

async fn secure(world: &World) -> TlsStream<TcpStream> {
    let mut stream = raw(world).await;
    stream.write_all(&SSL).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'S');
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(world.ca().as_bytes()) {
        roots.add(der.unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder_with_provider(http::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// A connection that is ready for questions, with its number and secret.
async fn open(world: &World, token: &str) -> (TlsStream<TcpStream>, Vec<u8>) {
    let mut stream = secure(world).await;
    stream.write_all(&startup()).await.unwrap();
    let (kind, body) = message(&mut stream).await;
    assert_eq!((kind, body.as_slice()), (b'R', &[0, 0, 0, 3][..]));
    stream.write_all(&with_length(Some(b'p'), format!("{token}\0").as_bytes())).await.unwrap();
    let told = until_ready(&mut stream).await;
    let key = told.iter().find(|(kind, _)| *kind == b'K').unwrap().1.clone();
    (stream, key)
}

async fn message(stream: &mut TlsStream<TcpStream>) -> (u8, Vec<u8>) {
    let kind = stream.read_u8().await.unwrap();
    let length = stream.read_u32().await.unwrap() as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await.unwrap();
    (kind, body)
}

async fn until_ready(stream: &mut TlsStream<TcpStream>) -> Vec<(u8, Vec<u8>)> {
    let mut out = Vec::new();
    loop {
        let next = message(stream).await;
        let done = next.0 == b'Z';
        out.push(next);
        if done {
            return out;
        }
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>, sql: &str) -> String {
    stream.write_all(&query(sql)).await.unwrap();
    let all: Vec<u8> = until_ready(stream).await.into_iter().flat_map(|(_, body)| body).collect();
    String::from_utf8_lossy(&all).into_owned()
}

async fn lives(world: &World, token: &str) {
    let (mut stream, _) = open(world, token).await;
    assert!(ask(&mut stream, "SELECT 'alive' AS it").await.contains("alive"));
}

#[test]
fn e2_nothing_but_a_cancel_request_is_read_without_tls() {
    let (world, token) = world();
    Runtime::new().unwrap().block_on(async {
        let mut stream = raw(&world).await;
        stream.write_all(&startup()).await.unwrap();
        let said = rest(&mut stream).await;
        assert!(String::from_utf8_lossy(&said).contains("TLS is needed"), "{said:?}");
        // What stands behind the request in the clear must not count as said inside TLS.
        let mut stream = raw(&world).await;
        let stuffed = [&SSL[..], &startup(), &query("SELECT 1")].concat();
        stream.write_all(&stuffed).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"");
        for garbage in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 64], b"\x16\x03\x01\xff\xff"]
        {
            let mut stream = raw(&world).await;
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let said = rest(&mut stream).await;
            // A TLS alert is an answer in TLS.
            assert!(said.is_empty() || said.first() == Some(&0x15), "{garbage:?}: {said:?}");
        }
        lives(&world, &token).await;
    });
}

#[test]
fn a3_only_a_token_that_may_read_is_let_in() {
    let (world, token) = world();
    let writer = world.token("acme", "write");
    let operator = world.operator_token();
    Runtime::new().unwrap().block_on(async {
        for wrong in ["", "wrong", &writer, &operator, &token[..token.len() - 1]] {
            let mut stream = secure(&world).await;
            stream.write_all(&startup()).await.unwrap();
            message(&mut stream).await;
            let password = with_length(Some(b'p'), format!("{wrong}\0").as_bytes());
            stream.write_all(&password).await.unwrap();
            let said = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
            assert!(said.contains("28P01") && said.contains("scope `read`"), "{said}");
        }
        // Questions without a password are no questions.
        let mut stream = secure(&world).await;
        stream.write_all(&startup()).await.unwrap();
        stream.write_all(&query("SELECT * FROM cpu")).await.unwrap();
        let said = rest(&mut stream).await;
        assert!(!String::from_utf8_lossy(&said).contains("host"), "{said:?}");
        lives(&world, &token).await;
    });
}

#[test]
fn a3_a_connection_ends_when_its_token_is_revoked() {
    let (world, _) = world();
    let token = world.token("acme", "read");
    Runtime::new().unwrap().block_on(async {
        let (mut idle, _) = open(&world, &token).await;
        let (mut busy, _) = open(&world, &token).await;
        let endless = query("SELECT count(*) FROM generate_series(1, 1000000000000)");
        busy.write_all(&endless).await.unwrap();
        let id = token.split('_').nth(1).unwrap().to_owned();
        tokio::task::block_in_place(|| world.admin(&["token", "revoke", &id, "--tenant", "acme"]));
        for stream in [&mut idle, &mut busy] {
            let said = String::from_utf8_lossy(&rest(stream).await).into_owned();
            assert!(said.contains("57P01"), "{said}");
        }
    });
}

#[test]
fn broken_messages_end_their_connection_and_nothing_else() {
    let (world, token) = world();
    let hostile: Vec<Vec<u8>> = vec![
        vec![0xff; 100],
        vec![b'Q', 0x7f, 0xff, 0xff, 0xff],
        vec![b'Q', 0, 0, 0, 0],
        with_length(Some(b'Q'), b"SELECT 1"),
        with_length(Some(b'Q'), b"\xff\xfe\0"),
        with_length(Some(b'P'), b"\0SELECT 1\0\xff\xff"),
        with_length(Some(b'B'), b"\0\0\0\0\xff\xff"),
        with_length(Some(b'D'), b"X\0"),
        with_length(Some(b'E'), b"\0"),
        with_length(Some(b'Z'), b""),
    ];
    let refused: Vec<Vec<u8>> = vec![
        query(&format!("SELECT '{}'", "x".repeat(1 << 20))),
        query(&format!("SELECT {}1{}", "lower(".repeat(200), ")".repeat(200))),
        query(&format!("SELECT {}1", "1+".repeat(5000))),
        query(&"SELECT 1;".repeat(100_000)),
        [with_length(Some(b'B'), b"p\0nothing\0\0\0\0\0\0\0"), with_length(Some(b'S'), b"")]
            .concat(),
        [with_length(Some(b'E'), b"nothing\0\0\0\0\0"), with_length(Some(b'S'), b"")].concat(),
        [with_length(Some(b'd'), b"copy"), with_length(Some(b'S'), b"")].concat(),
    ];
    Runtime::new().unwrap().block_on(async {
        for bytes in hostile {
            let (mut stream, _) = open(&world, &token).await;
            stream.write_all(&bytes).await.unwrap();
            let said = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
            assert!(said.contains("08P01"), "{:?}: {said}", &bytes[..bytes.len().min(20)]);
        }
        let (mut stream, _) = open(&world, &token).await;
        let longest = [&[b'Q'][..], &(3u32 << 20).to_be_bytes()].concat();
        stream.write_all(&longest).await.unwrap();
        assert!(String::from_utf8_lossy(&rest(&mut stream).await).contains("08P01"));
        for bytes in refused {
            let (mut stream, _) = open(&world, &token).await;
            stream.write_all(&bytes).await.unwrap();
            let said = until_ready(&mut stream).await;
            assert!(said.iter().any(|(kind, _)| *kind == b'E'), "{:?}", &bytes[..20]);
            assert!(ask(&mut stream, "SELECT 'alive' AS it").await.contains("alive"));
        }
        lives(&world, &token).await;
    });
}

#[test]
fn clients_that_leave_in_the_middle_leave_no_query_behind() {
    let (world, token) = world();
    Runtime::new().unwrap().block_on(async {
        for n in 0..30 {
            let (mut stream, _) = open(&world, &token).await;
            let busy = "SELECT count(*) FROM generate_series(1, 1000000000000)";
            let rows = "SELECT value FROM generate_series(1, 1000000000000)";
            stream.write_all(&query(if n % 2 == 0 { busy } else { rows })).await.unwrap();
            stream.flush().await.unwrap();
            if n % 2 == 1 {
                assert_eq!(message(&mut stream).await.0, b'T', "rows are on their way");
            }
        }
        lives(&world, &token).await;
    });
}

#[test]
fn only_the_right_number_and_secret_cancel_a_statement() {
    let (world, token) = world();
    Runtime::new().unwrap().block_on(async {
        let (mut stream, key) = open(&world, &token).await;
        let (mut other, _) = open(&world, &token).await;
        stream
            .write_all(&query("SELECT count(*) FROM generate_series(1, 1000000000000)"))
            .await
            .unwrap();
        let cancel = |key: &[u8]| with_length(None, &[&[4, 210, 22, 46][..], key].concat());
        let mut wrong = key.clone();
        wrong[7] ^= 1;
        for bytes in [cancel(&wrong), cancel(&key[..4]), cancel(&[]), cancel(&key)] {
            let mut request = raw(&world).await;
            request.write_all(&bytes).await.unwrap();
            assert_eq!(rest(&mut request).await, b"", "a cancel request has no answer");
            assert!(ask(&mut other, "SELECT 'alive' AS it").await.contains("alive"));
        }
        let said = until_ready(&mut stream).await;
        let error = said.iter().find(|(kind, _)| *kind == b'E').unwrap();
        assert!(String::from_utf8_lossy(&error.1).contains("57014"));
        assert!(ask(&mut stream, "SELECT 'alive' AS it").await.contains("alive"));
    });
}

#[test]
fn a1_the_catalogue_over_postgresqls_protocol_is_the_tenants_own() {
    let mut world = World::empty();
    world.settings(&PG);
    world.tenant("acme");
    world.tenant("bolt");
    let (a, b) = (world.token("acme", "read,write"), world.token("bolt", "read,write"));
    world.start();
    for database in ["default", scan::CANARIES[0]] {
        world.client(Some(&a)).write(database, &scan::canary_lines(NEW_YEAR_NS));
    }
    world.client(Some(&b)).write("default", &format!("own v=1 {NEW_YEAR_NS}"));
    Runtime::new().unwrap().block_on(async {
        let (mut theirs, _) = open(&world, &b).await;
        for sql in [
            "SELECT * FROM pg_catalog.pg_class",
            "SELECT * FROM pg_attribute",
            "SELECT * FROM pg_database",
            "SELECT * FROM pg_namespace",
            "SELECT * FROM pg_tables",
            "SELECT * FROM information_schema.tables",
            "SELECT * FROM information_schema.columns",
            "SELECT * FROM information_schema.schemata",
            "SELECT * FROM canarytableqzx",
            "SELECT 'canarytableqzx'::regclass",
            "SHOW TABLES",
            "SHOW ALL",
            "SET search_path TO canarydbqzx; SHOW TABLES",
        ] {
            let said = ask(&mut theirs, sql).await;
            let seen = scan::canaries_in(said.as_bytes());
            let quoted = |canary: &String| sql.contains(canary.as_str());
            assert!(seen.iter().all(quoted), "{sql}: {said}");
        }
        let (mut mine, _) = open(&world, &a).await;
        assert!(ask(&mut mine, "SELECT * FROM pg_tables").await.contains("canarytableqzx"));
    });
}
