//! A real file system without space: writes are refused in their own words, reads go on, nothing
//! acknowledged is lost, a start comes up, and writes go on when there is space again.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use millrace_tests::{Client, Ledger, World};

use crate::NEW_YEAR_NS;

/// Bytes of the file system: a log segment of 64 MiB, the next one, and what flushes write.
const DISK_MIB: u64 = 192;
/// Bytes of the text in one row: few rows fill the log.
const TEXT_BYTES: usize = 48 << 10;
/// Rows of one request.
const ROWS: u64 = 128;
/// Space came back: writes go on. The promise's ten seconds are kept on the simulation's clock
/// (`sim::full_disk`); an unoptimised build on a busy machine replays its log more slowly.
const RESUMES_WITHIN: Duration = Duration::from_secs(60);

/// A small file system in memory; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    /// `None` where this user may not mount.
    fn at(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={DISK_MIB}m,mode=0700");
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        done.ok().filter(|o| o.status.success()).map(|_| Self(path.to_path_buf()))
    }

    /// Takes all the space there is.
    fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        for size in [1 << 20, 4 << 10] {
            let piece = vec![0xA5; size];
            while ballast.write_all(&piece).is_ok() {}
        }
    }

    /// Gives it back.
    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a server of a test that failed may still be ending.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Sends the next rows; the answer's status and code.
fn write(client: &Client, ledger: &mut Ledger, next: &mut u64) -> (u16, String) {
    let text = "x".repeat(TEXT_BYTES);
    let mut lines = String::new();
    for n in *next..*next + ROWS {
        let time = NEW_YEAR_NS + i64::try_from(n).unwrap() * 1_000_000;
        lines.push_str(&format!("big,writer=1 n={n}i,text=\"{n}{text}\" {time}\n"));
    }
    let rows: Vec<_> = (*next..*next + ROWS).map(|n| (1, n)).collect();
    *next += ROWS;
    ledger.sending(rows.iter().copied());
    let answer = client.try_write("default", &lines).expect("the server answers");
    if (200..300).contains(&answer.status) {
        ledger.acked(rows);
        return (answer.status, String::new());
    }
    if answer.status == 507 {
        let later = answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
        assert!(later, "507 says when to come back");
    }
    let code = answer.json().get("code").and_then(|c| c.as_str()).unwrap_or_default().to_owned();
    (answer.status, code)
}

/// Writes until an answer is a success, within the promise.
fn resumes(client: &Client, ledger: &mut Ledger, next: &mut u64, when: &str) {
    let since = Instant::now();
    loop {
        let (status, code) = write(client, ledger, next);
        if status < 300 {
            return;
        }
        assert!(since.elapsed() < RESUMES_WITHIN, "{when}: still {status} {code}");
    }
}

#[test]
fn d1_a_full_disk_refuses_writes_keeps_reads_starts_and_resumes_without_a_restart() {
    let mut world = World::empty();
    let Some(disk) = Mount::at(&world.data()) else {
        eprintln!("SKIPPED: this user may not mount a file system, so no real disk gets full");
        return;
    };
    world.settings(&["--memory-mib", "256"]);
    world.tenant("acme");
    let token = world.token("acme", "write,read");
    world.start();
    let client = world.client(Some(&token));
    let (mut ledger, mut next) = (Ledger::default(), 0);
    assert_eq!(write(&client, &mut ledger, &mut next).0, 204);

    disk.fill();
    // The open segment has room for some; 64 MiB are eleven requests.
    let full = (0..20).map(|_| write(&client, &mut ledger, &mut next)).find(|a| a.0 >= 300);
    assert_eq!(full, Some((507, "disk_full".to_owned())));
    ledger.check(&client, "default", "big").is_clean("reads go on while the disk is full");
    disk.free();
    resumes(&client, &mut ledger, &mut next, "space came back");
    ledger.check(&client, "default", "big").is_clean("space came back");

    disk.fill();
    world.kill9();
    world.start();
    ledger.check(&client, "default", "big").is_clean("a start on a full disk");
    let refused = write(&client, &mut ledger, &mut next);
    assert_eq!(refused, (507, "disk_full".to_owned()), "a start on a full disk takes no rows");
    disk.free();
    resumes(&client, &mut ledger, &mut next, "space came back after a start");
    ledger.check(&client, "default", "big").is_clean("space came back after a start");

    world.kill9();
    world.start();
    ledger.check(&client, "default", "big").is_clean("after all of it and a kill");
    world.stop();
}
