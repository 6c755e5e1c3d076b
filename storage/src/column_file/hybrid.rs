//! Parquet's RLE and bit-packing hybrid: definition levels, dictionary indices, booleans.
//!
//! Owns: when a stretch is written as a run and when bit by bit. Never: reads.
//! Layout: `varint(count << 1)` and the value in whole bytes for a run; `varint(groups << 1 | 1)`
//! and groups of eight values, least significant bit first, for packed values.

use arrow::buffer::BooleanBuffer;

/// A run shorter than this is packed: its header and the break in the packed groups cost more.
const RUN_MIN: usize = 16;

/// Appends an unsigned variable-length number, seven bits a byte.
pub(super) fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Bits that `n` needs.
pub(super) fn bits(n: u64) -> usize {
    (u64::BITS - n.leading_zeros()) as usize
}

/// Appends `values`, each `width` bits, least significant first; the last byte is filled up with
/// zeros. Each value must be below 2^width.
pub(super) fn pack(out: &mut Vec<u8>, values: impl Iterator<Item = u64>, width: usize) {
    if width == 0 {
        return;
    }
    let (mut word, mut filled) = (0u64, 0usize);
    for value in values {
        word |= value << filled;
        filled += width;
        if filled >= 64 {
            out.extend_from_slice(&word.to_le_bytes());
            filled -= 64;
            // What did not fit; a shift by all 64 bits would leave the value as it was.
            word = if filled == 0 { 0 } else { value >> (width - filled) };
        }
    }
    let rest = word.to_le_bytes();
    out.extend_from_slice(rest.get(..filled.div_ceil(8)).unwrap_or_default());
}

/// Appends bits of width one, as Parquet's levels (1 is present) and booleans are.
pub(super) fn bools(out: &mut Vec<u8>, values: &BooleanBuffer) {
    let chunks = values.bit_chunks();
    let mut words = Vec::new();
    let mut run = (false, 0u64);
    let flush_run = |out: &mut Vec<u8>, run: &mut (bool, u64)| {
        if run.1 > 0 {
            varint(out, run.1 << 1);
            out.push(u8::from(run.0));
            run.1 = 0;
        }
    };
    let flush_words = |out: &mut Vec<u8>, words: &mut Vec<u64>, bits: usize| {
        if bits > 0 {
            varint(out, ((bits.div_ceil(8) as u64) << 1) | 1);
            let bytes = words.iter().flat_map(|w| w.to_le_bytes());
            out.extend(bytes.take(bits.div_ceil(8)));
            words.clear();
        }
    };
    let mut one = |word: u64, len: usize, all: u64| {
        if word == 0 || word == all {
            let packed = words.len() * 64;
            flush_words(out, &mut words, packed);
            let bit = word != 0;
            if run.1 > 0 && run.0 != bit {
                flush_run(out, &mut run);
            }
            run = (bit, run.1 + len as u64);
        } else {
            flush_run(out, &mut run);
            words.push(word);
        }
    };
    for word in chunks.iter() {
        one(word, 64, u64::MAX);
    }
    let left = chunks.remainder_len();
    if left > 0 {
        // A part of a word: only the last may be one, so that packed groups stay whole.
        one(chunks.remainder_bits(), left, (1u64 << left) - 1);
    }
    flush_run(out, &mut run);
    let packed = match words.len() {
        0 => 0,
        n if left > 0 => (n - 1) * 64 + left,
        n => n * 64,
    };
    flush_words(out, &mut words, packed);
}

/// Appends dictionary indices, each below 2^width; `width` is 1 to 32.
pub(super) fn indices(out: &mut Vec<u8>, values: &[u32], width: usize) {
    let packed = |out: &mut Vec<u8>, values: &[u32]| {
        if !values.is_empty() {
            let groups = values.len().div_ceil(8);
            varint(out, ((groups as u64) << 1) | 1);
            let filled = std::iter::repeat_n(0, groups * 8 - values.len());
            pack(out, values.iter().map(|v| u64::from(*v)).chain(filled), width);
        }
    };
    let (mut at, mut from) = (0, 0);
    while let Some(value) = values.get(at) {
        let run = values[at..].iter().take_while(|v| *v == value).count();
        // Groups of eight are filled up from the run's own values.
        let fill = (8 - (at - from) % 8) % 8;
        if run >= RUN_MIN + fill {
            packed(out, &values[from..at + fill]);
            run_of(out, *value, run - fill, width);
            from = at + run;
        }
        at += run;
    }
    packed(out, &values[from..]);
}

/// Appends `count` times `value`.
pub(super) fn run_of(out: &mut Vec<u8>, value: u32, count: usize, width: usize) {
    varint(out, (count as u64) << 1);
    let bytes = value.to_le_bytes();
    out.extend_from_slice(bytes.get(..width.div_ceil(8)).unwrap_or_default());
}
