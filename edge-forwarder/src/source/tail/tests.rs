//! A program that writes the file, against the follower that reads it.
#![expect(clippy::disallowed_methods, reason = "plays the program that writes the file")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use super::*;

struct Writer {
    dir: tempfile::TempDir,
    follower: Follower,
    /// What was durable last: a crash goes back to it.
    stored: Option<Vec<u8>>,
}

impl Writer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let follower = Follower::new(dir.path().join("x.lp"), None);
        Self { dir, follower, stored: None }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.lp")
    }

    fn append(&self, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(&self) {
        fs::rename(self.path(), self.dir.path().join("x.lp.1")).unwrap();
    }

    /// The forwarder starts again from what was durable.
    fn restart(&mut self) {
        self.follower = Follower::new(self.path(), self.stored.as_deref());
    }

    /// Everything that can be read now; gaps as `<cause>`.
    fn read(&mut self) -> String {
        let mut out = String::new();
        loop {
            match self.follower.look().unwrap() {
                Look::Nothing => return out,
                Look::Moved => {}
                Look::Gap(cause, _) => out.push_str(&format!("<{}>", cause.name())),
                Look::Text { before, text } => {
                    out.push_str(&String::from_utf8_lossy(&text));
                    let place = self.follower.place;
                    self.follower.place = Follower::behind(place, &before, &text, text.len());
                }
            }
            self.stored = Some(self.follower.place.encode());
        }
    }
}

#[test]
fn whole_lines_are_read_once_and_half_a_line_waits() {
    let mut w = Writer::new();
    assert_eq!(w.read(), "");
    w.append("a v=1 1\nb v=");
    assert_eq!(w.read(), "a v=1 1\n");
    assert_eq!(w.read(), "");
    w.append("2 2\n");
    assert_eq!(w.read(), "b v=2 2\n");
}

#[test]
fn e9_a_restart_goes_on_behind_the_last_stored_line() {
    let mut w = Writer::new();
    w.append("a v=1 1\n");
    assert_eq!(w.read(), "a v=1 1\n");
    w.append("b v=2 2\n");
    w.restart();
    assert_eq!(w.read(), "b v=2 2\n");
    w.restart();
    assert_eq!(w.read(), "");
}

#[test]
fn e8_a_renamed_file_is_read_to_its_end_before_the_new_one() {
    for restarted in [false, true] {
        let mut w = Writer::new();
        w.append("a v=1 1\n");
        assert_eq!(w.read(), "a v=1 1\n");
        w.append("b v=2 2\nlast v=3 3");
        w.rotate();
        w.append("c v=4 4\n");
        if restarted {
            w.restart();
        }
        assert_eq!(w.read(), "b v=2 2\nlast v=3 3c v=4 4\n", "restarted: {restarted}");
    }
}

#[test]
fn e8_a_file_that_went_before_it_was_read_is_a_gap() {
    let mut w = Writer::new();
    w.append("a v=1 1\n");
    assert_eq!(w.read(), "a v=1 1\n");
    // Kept open elsewhere, so that the file system cannot give its inode to the new one.
    let _held = fs::File::open(w.path()).unwrap();
    fs::remove_file(w.path()).unwrap();
    w.append("c v=4 4\n");
    w.restart();
    assert_eq!(w.read(), "<source_overrun>c v=4 4\n");
}

#[test]
fn e8_a_file_that_was_cut_is_read_anew_with_a_gap_even_if_it_has_grown_past_the_old_end() {
    for (again, what) in [("c v=3 3\n", "shorter"), ("cccccc v=3 3\ndddddd v=4 4\n", "longer")] {
        let mut w = Writer::new();
        w.append("a v=1 1\nb v=2 2\n");
        assert_eq!(w.read(), "a v=1 1\nb v=2 2\n");
        fs::OpenOptions::new().write(true).truncate(true).open(w.path()).unwrap();
        w.append(again);
        assert_eq!(w.read(), format!("<source_overrun>{again}"), "{what}");
    }
}

#[test]
fn e8_a_line_without_end_is_one_gap_and_no_part_of_it_becomes_a_row() {
    let mut w = Writer::new();
    w.append("a v=1 1\n");
    w.append(&"x".repeat(LINE_BYTES_MAX + LINE_BYTES_MAX / 2));
    assert_eq!(w.read(), "a v=1 1\n<rejected>");
    w.restart();
    w.append("planted v=1 1\nb v=2 2\n");
    assert_eq!(w.read(), "b v=2 2\n");
}

#[test]
fn what_is_no_file_is_an_error_and_what_is_not_there_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Follower::new(dir.path().to_path_buf(), None).look().is_err());
    let mut missing = Follower::new(dir.path().join("no"), None);
    assert_eq!(missing.look().unwrap(), Look::Nothing);
    assert_eq!(Place::decode(b"nonsense"), None);
    let place = Place { inode: 5, offset: 9, print: 7, skipping: true };
    assert_eq!(Place::decode(&place.encode()), Some(place));
    assert_eq!(find(Path::new("/nowhere"), 1).map(|_| ()), None);
}
