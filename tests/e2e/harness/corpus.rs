//! Hostile input as data: `tests/corpus/http/*.json`, one list of requests per file, each with
//! the status and the stable code that must come back.
//!
//! Owns: the entries' shape, and accepting new codes with `UPDATE_EXPECT=1` (statuses are written
//! by hand and never accepted).

use std::path::PathBuf;

use serde_json::{Map, Value};

/// The folder of all corpora.
pub fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("..").join("corpus")
}

/// One request and what must come back.
#[derive(Debug, Clone)]
pub struct Entry {
    /// A sentence that says what is wrong with it.
    pub name: String,
    /// The entry as it stands in its file.
    pub raw: Map<String, Value>,
}

impl Entry {
    /// A text member, empty if absent.
    pub fn text(&self, key: &str) -> &str {
        self.raw.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The headers of the request.
    pub fn headers(&self) -> Vec<(String, String)> {
        let headers = self.raw.get("headers").and_then(Value::as_object);
        headers
            .into_iter()
            .flatten()
            .map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect()
    }

    /// The status that must come back.
    pub fn status(&self) -> u16 {
        self.raw
            .get("status")
            .and_then(Value::as_u64)
            .and_then(|s| u16::try_from(s).ok())
            .unwrap_or(0)
    }

    /// The body: `body` (text), `hex`, or `repeat` times `body`, then `gzip` or `zstd` if asked.
    pub fn body(&self) -> Vec<u8> {
        let mut body = self.text("body").as_bytes().to_vec();
        if let Some(hex) = self.raw.get("hex").and_then(Value::as_str) {
            body = hex::decode(hex).expect("hexadecimal digits");
        }
        if let Some(times) = self.raw.get("repeat").and_then(Value::as_u64) {
            body = body.repeat(usize::try_from(times).expect("fits"));
        }
        match self.text("compress") {
            "gzip" => {
                use std::io::Write;
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(&body).expect("memory does not fail");
                encoder.finish().expect("memory does not fail")
            }
            "zstd" => zstd::encode_all(body.as_slice(), 3).expect("memory does not fail"),
            _ => body,
        }
    }
}

/// One file of entries.
#[derive(Debug)]
pub struct File {
    /// Where it stands.
    pub path: PathBuf,
    /// Its entries.
    pub entries: Vec<Entry>,
}

/// All files of a corpus, by name.
pub fn files(corpus: &str) -> Vec<File> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder().join(corpus))
        .expect("the corpus is part of the tree")
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    paths.sort();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> File {
    let text = std::fs::read_to_string(&path).expect("readable");
    let list: Vec<Map<String, Value>> =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let entries = list
        .into_iter()
        .map(|raw| Entry {
            name: raw.get("name").and_then(Value::as_str).unwrap_or("unnamed").to_owned(),
            raw,
        })
        .collect();
    File { path, entries }
}

impl File {
    /// Writes the entries back, one per line.
    pub fn save(&self) {
        let lines: Vec<String> = self
            .entries
            .iter()
            .map(|e| format!("  {}", serde_json::to_string(&e.raw).expect("JSON")))
            .collect();
        std::fs::write(&self.path, format!("[\n{}\n]\n", lines.join(",\n"))).expect("writable");
    }
}

/// Whether codes are to be accepted as they come.
pub fn accepting() -> bool {
    std::env::var_os("UPDATE_EXPECT").is_some()
}
