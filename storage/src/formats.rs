//! The pages of `docs/formats` that describe what this crate stores: every example on them is made
//! here again, from seeded randomness, and compared byte for byte.
//!
//! In the examples the key of an owner whose id is 16 bytes n is 32 bytes n, version 1; the
//! system's id is 16 bytes 0.

mod files;
mod log;
mod manifests;

use std::sync::Arc;

use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};

/// The seed of every example.
const SEED: u64 = 2026;

/// See the module head.
struct ExampleKeys;

impl TenantKeySource for ExampleKeys {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if version != 1 {
            return Err(KeyError::UnknownVersion { tenant: hex::encode(tenant), version });
        }
        Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([tenant[0]; 32]))))
    }
}

/// The page's blocks of one language, in order.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    page.split(&open).skip(1).map(|rest| rest.split("```").next().unwrap_or("")).collect()
}

/// The bytes of a hex block: on each line what stands before `|`.
fn bytes_of(block: &str) -> Vec<u8> {
    let digits: String = block
        .lines()
        .filter_map(|line| line.split('|').next())
        .flat_map(str::split_whitespace)
        .collect();
    hex::decode(digits).expect("a hex block holds pairs of hex digits")
}

fn dump(bytes: &[u8]) -> String {
    bytes.chunks(16).fold(String::new(), |mut out, line| {
        out.extend(line.iter().map(|b| format!("{b:02x} ")));
        out.push('\n');
        out
    })
}

/// Compares the page's hex blocks with what the code makes.
fn same_bytes(page: &str, made: &[&[u8]]) {
    let shown: String = made.iter().map(|b| dump(b) + "\n").collect();
    let written = blocks(page, "hex");
    assert_eq!(written.len(), made.len(), "the number of hex blocks; the code makes:\n{shown}");
    for (number, (block, made)) in written.iter().zip(made).enumerate() {
        assert!(bytes_of(block) == *made, "hex block {number} differs; the code makes:\n{shown}");
    }
}

/// Compares the page's JSON blocks with what the code makes; white space is free.
fn same_json(page: &str, made: &[Vec<u8>]) {
    let parse = |bytes: &[u8]| -> serde_json::Value {
        serde_json::from_slice(bytes).expect("a JSON block is JSON")
    };
    let made: Vec<serde_json::Value> = made.iter().map(|b| parse(b)).collect();
    let shown = made.iter().map(|v| format!("{v:#}")).collect::<Vec<_>>().join("\n\n");
    let written: Vec<_> = blocks(page, "json").iter().map(|b| parse(b.as_bytes())).collect();
    assert!(written == made, "the JSON blocks differ; the code makes:\n{shown}");
}
