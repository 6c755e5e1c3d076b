//! Looks for bytes that must not be there.
//!
//! Owns: walking a folder and searching every file, and the canaries themselves: words that no
//! format, log line or compiler puts anywhere by chance.

use std::path::{Path, PathBuf};

/// Words that stand for a customer's secrets, one per place where a word can hide.
pub const CANARIES: [&str; 6] = [
    "canarydbqzx",
    "canarytableqzx",
    "canarytagqzx",
    "canaryvalueqzx",
    "canaryfieldqzx",
    "canarytextqzx",
];

/// The integer and float canaries: eight bytes each, whose bits repeat nowhere by chance.
pub const CANARY_NUMBERS: (i64, f64) = (0x5ca1_ab1e_c0de_d00d, 1.234_567_890_123_456_7e-123);

/// Line protocol that carries every canary.
pub fn canary_lines(time_ns: i64) -> String {
    let (integer, float) = CANARY_NUMBERS;
    format!(
        "canarytableqzx,canarytagqzx=canaryvalueqzx canaryfieldqzx={float:e},whole={integer}i,text=\"canarytextqzx\" {time_ns}\n"
    )
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Whether `needle` stands in `hay`.
pub fn holds(hay: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && memchr::memmem::find(hay, needle).is_some()
}

/// The canaries that stand in `bytes`, as text, or as numbers in either byte order.
pub fn canaries_in(bytes: &[u8]) -> Vec<String> {
    let mut found: Vec<String> = CANARIES
        .iter()
        .filter(|c| holds(bytes, c.as_bytes()) || holds(bytes, hex_of(c).as_bytes()))
        .map(|c| (*c).to_owned())
        .collect();
    let (integer, float) = CANARY_NUMBERS;
    for (name, raw) in [("the integer", integer.to_le_bytes()), ("the float", float.to_le_bytes())]
    {
        let mut reversed = raw;
        reversed.reverse();
        if holds(bytes, &raw) || holds(bytes, &reversed) {
            found.push(name.to_owned());
        }
    }
    found
}

fn hex_of(text: &str) -> String {
    hex::encode(text.as_bytes())
}

/// Every canary below a folder, with the file that holds it; names of files count too.
pub fn canaries_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in files(folder) {
        for canary in canaries_in(file.to_string_lossy().as_bytes()) {
            found.push(format!("{canary} in the name of {}", file.display()));
        }
        if let Ok(bytes) = std::fs::read(&file) {
            found.extend(canaries_in(&bytes).iter().map(|c| format!("{c} in {}", file.display())));
        }
    }
    found
}

/// Local addresses on which a process listens, TCP over IPv4 and IPv6, from procfs.
pub fn listening(pid: u32) -> Vec<String> {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        if let Ok(target) = std::fs::read_link(entry.path())
            && let Some(inode) = target.to_string_lossy().strip_prefix("socket:[")
        {
            inodes.push(inode.trim_end_matches(']').to_owned());
        }
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, ..] = cells[..] else { continue };
            let Some(inode) = cells.get(9) else { continue };
            // 0A is LISTEN; a UDP socket that waits for anyone is 07.
            let waits = if table.starts_with("tcp") { state == "0A" } else { state == "07" };
            if waits && inodes.iter().any(|i| i == inode) {
                found.push(format!("{table} {local}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_canary_is_found_and_a_clean_folder_is_not_accused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("clean"), b"nothing to see").unwrap();
        assert!(canaries_below(folder.path()).is_empty());
        std::fs::write(folder.path().join("log"), b"..canarytagqzx..").unwrap();
        let mut number = b"..".to_vec();
        number.extend_from_slice(&CANARY_NUMBERS.0.to_be_bytes());
        std::fs::write(folder.path().join("wal"), number).unwrap();
        assert_eq!(canaries_below(folder.path()).len(), 2);
    }

    #[test]
    fn this_process_is_seen_to_listen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!listening(std::process::id()).is_empty());
        drop(listener);
    }
}
