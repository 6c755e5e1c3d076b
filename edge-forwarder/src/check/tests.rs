//! Everything that can be wrong is said, each with what to do.

use millrace_platform::{
    clock::SystemClock,
    disk::RealDisk,
    entropy::OsEntropy,
    net::TcpDialer,
    sim::{SimClock, SimDisk, disk::Faults},
};
use millrace_protocol::{
    device::{EnrolAnswer, EnrolRequest},
    ids::{DeviceId, TenantId},
};
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};

use super::*;
use crate::{identity, settings};

const NOW: i64 = EARLIEST_NS + 400 * DAY_NS;

fn ground(disk: &SimDisk, now_ns: i64) -> Ground {
    Ground {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(SimClock::at(now_ns)),
        dialer: Arc::new(TcpDialer),
        data_dir: "/edge".into(),
    }
}

fn level(found: &[Finding], area: &str) -> Option<(Level, String)> {
    found.iter().find(|f| f.area == area).map(|f| (f.level, f.said.clone()))
}

fn signed(request: &EnrolRequest) -> EnrolAnswer {
    let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
    EnrolAnswer {
        device_id: DeviceId([1; 16]),
        tenant_id: TenantId([2; 16]),
        certificate_pem: csr.signed_by(&issuer).unwrap().pem(),
        ca_pem: String::new(),
        not_after_ns: NOW + 10 * DAY_NS,
    }
}

fn enrolled(disk: &SimDisk) {
    let key = KeyPair::generate().unwrap();
    let ca = CertificateParams::default().self_signed(&key).unwrap().pem();
    // Nothing listens on port 1.
    let url = "https://127.0.0.1:1";
    let dir = std::path::Path::new("/edge");
    identity::enrol(disk, &OsEntropy, dir, url, &ca, "code", |request| Ok(signed(request)))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_enrolled_is_said_with_what_to_do() {
    let disk = SimDisk::new();
    let found = all(&ground(&disk, NOW), &[]).await;
    assert_eq!(level(&found, "disk"), Some((Level::Wrong, "/edge is not there".to_owned())));
    let identity = found.iter().find(|f| f.area == "identity").unwrap();
    assert!(identity.level == Level::Wrong && identity.advice.contains("device claim"));
    assert!(shown(&found).contains("WRONG    disk: /edge is not there\n         -> enrol"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_an_old_certificate_and_a_full_disk_are_told_apart() {
    let disk = SimDisk::new();
    enrolled(&disk);
    // On the real clock: the connection waits for real.
    let real = Ground { clock: Arc::new(SystemClock::new()), ..ground(&disk, 0) };
    let found = all(&real, &[]).await;
    let server = found.iter().find(|f| f.area == "server").unwrap();
    assert!(
        server.level == Level::Wrong && server.advice.contains("is the server up"),
        "{server:?}"
    );
    assert_eq!(level(&found, "forwarder").unwrap().0, Level::Warning);
    assert_eq!(level(&found, "disk").unwrap().0, Level::Fine);
    let used = disk.used();
    disk.set_faults(Faults { capacity: Some(used), ..Faults::default() });
    assert_eq!(super::disk(&ground(&disk, NOW)).level, Level::Wrong);

    assert_eq!(certificate(NOW + 10 * DAY_NS, NOW).level, Level::Warning);
    assert_eq!(certificate(NOW + 80 * DAY_NS, NOW).level, Level::Fine);
    assert!(certificate(NOW, NOW + 3 * DAY_NS).said.contains("3 days ago"));
    assert_eq!(clock(0).level, Level::Wrong);
    assert_eq!(clock(NOW).level, Level::Fine);
}

#[test]
fn what_the_running_forwarder_says_of_itself_counts() {
    let disk = SimDisk::new();
    disk.create_dir_all(std::path::Path::new("/edge")).unwrap();
    let ground = ground(&disk, NOW);
    let check = |status: status::Status, expected: Level| {
        let status = status::Status { time_ns: NOW, rows_pending: 7, ..status };
        status::write(&disk, &ground.data_dir, &status).unwrap();
        let found = forwarder(&ground);
        assert_eq!(found.level, expected, "{found:?}");
    };
    let fine = || status::Status { connected: true, ..status::Status::default() };
    check(fine(), Level::Fine);
    check(status::Status { connected: false, ..fine() }, Level::Wrong);
    check(status::Status { room: Room::DiskFull, ..fine() }, Level::Wrong);
    check(status::Status { put_aside: 2, ..fine() }, Level::Warning);
    let old = status::Status { time_ns: NOW - 2 * STATUS_OLD_NS, ..fine() };
    status::write(&disk, &ground.data_dir, &old).unwrap();
    assert!(forwarder(&ground).said.contains("does not run; 0 rows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_reached_or_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("a.lp");
    durable::replace(&RealDisk, &there, b"a v=1\n").unwrap();
    let text = r#"
        [[modbus]]
        name = "m"
        address = "127.0.0.1:1"
        table = "t"
        register = [{ field = "a", area = "coil", address = 0, kind = "bool" }]
        [[mqtt]]
        name = "b"
        url = "mqtt://127.0.0.1:1"
        table = "t"
        topic = [{ filter = "a" }]
        [[mtconnect]]
        name = "a"
        url = "http://127.0.0.1:1"
        table = "t"
    "#;
    let mut kinds = settings::sources(text).unwrap();
    kinds.push(SourceKind::Tail(there));
    kinds.push(SourceKind::Tail(folder.path().join("none.lp")));
    let ground = Ground { clock: Arc::new(SystemClock::new()), ..ground(&SimDisk::new(), 0) };
    let mut levels = Vec::new();
    for kind in &kinds {
        let found = sources::look(&ground, kind).await;
        assert_eq!(found.advice.is_empty(), found.level == Level::Fine, "{found:?}");
        levels.push((found.area.split('-').next().unwrap().to_owned(), found.level));
    }
    let expected = [
        ("modbus", Level::Wrong),
        ("mqtt", Level::Wrong),
        ("mtconnect", Level::Wrong),
        ("tail", Level::Fine),
        ("tail", Level::Wrong),
    ];
    assert_eq!(levels, expected.map(|(n, l)| (n.to_owned(), l)));
}
