//! An input as a list of edits of bytes that are valid.
//!
//! Owns: the reading of a script. Whatever its bytes are, they are a script:
//! ```text
//! per edit: u8 kind, u24 place (of the length, modulo), u8 argument
//! kind % 4: 0 xor one byte, 1 write the argument 16 times, 2 cut here, 3 write the 16 bytes that
//! stand `argument` * 16 bytes after the start
//! ```

/// The longest script.
const EDITS_MAX: usize = 64;

/// Applies a script; whether anything is different.
pub fn apply(script: &[u8], bytes: &mut Vec<u8>) -> bool {
    let before = bytes.clone();
    for edit in script.chunks_exact(5).take(EDITS_MAX) {
        if bytes.is_empty() {
            break;
        }
        let place = u32::from_le_bytes([edit[1], edit[2], edit[3], 0]) as usize % bytes.len();
        let end = bytes.len().min(place + 16);
        match edit[0] % 4 {
            0 => bytes[place] ^= edit[4],
            1 => bytes[place..end].fill(edit[4]),
            2 => bytes.truncate(place),
            _ => {
                let from = (usize::from(edit[4]) * 16).min(bytes.len());
                let until = bytes.len().min(from + (end - place));
                bytes.copy_within(from..until, place);
            }
        }
    }
    *bytes != before
}

/// A script of one edit.
pub fn one(kind: u8, place: u32, argument: u8) -> Vec<u8> {
    let [a, b, c, _] = place.to_le_bytes();
    vec![kind, a, b, c, argument]
}
