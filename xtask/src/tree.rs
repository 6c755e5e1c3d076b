//! The checkout as a list of files.
//!
//! Owns: where the root is, which folders are not part of the tree, reading a file as text.
//! Never: judges what it reads.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Folders that hold no source: build output, version control, environments, editors' droppings.
const NOT_OURS: [&str; 6] = ["target", ".git", ".venv", "__pycache__", "node_modules", ".idea"];

/// The root of the checkout: the parent of this crate's folder. What cargo says when it starts us
/// counts before what was compiled in: a target folder may be shared between checkouts.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().unwrap_or(&here).to_path_buf()
}

/// Every file of the checkout, relative to the root, sorted.
pub(crate) fn files() -> io::Result<Vec<PathBuf>> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if NOT_OURS.iter().any(|skip| name == *skip) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Ok(relative) = entry.path().strip_prefix(&root) {
                found.push(relative.to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The files whose name ends in `.extension`.
pub(crate) fn files_with(extension: &str) -> io::Result<Vec<PathBuf>> {
    Ok(files()?.into_iter().filter(|f| f.extension().is_some_and(|e| e == extension)).collect())
}

/// A file of the checkout as text; `None` if it is missing or not UTF-8.
pub(crate) fn text(relative: &Path) -> io::Result<Option<String>> {
    match fs::read(root().join(relative)) {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
