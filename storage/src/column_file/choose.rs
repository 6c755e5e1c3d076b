//! Which encoding a column chunk gets.
//!
//! Owns: the choice, made by encoding a sample each way and comparing sizes; what is dearer to
//! read or write must win by a margin. Never: decides what may be stored at all: a choice made on
//! a sample that misleads costs bytes, never a value.

use parquet::errors::ParquetError;

use super::{
    chunk::{Codec, Compressors},
    delta::{self, Layout},
    hybrid::bits,
    writer::FileProfile,
};

/// Fewer values are not worth a look.
const SAMPLED_MIN: usize = 256;
/// Values of a sample: a sixteenth of the chunk, within these bounds.
const SAMPLE: (usize, usize) = (2048, 8192);
/// A compressor behind packed bits must save this much, in percent, to be paid at each read.
const MARGIN: usize = 8;
/// Distinct values of a dictionary at most.
pub(super) const DICTIONARY_MAX: usize = 1 << 15;

/// How whole numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// DELTA_BINARY_PACKED.
    Delta(Layout, Codec),
    /// A dictionary.
    Dictionary,
}

/// How floats that are no decimals are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Floats {
    /// A dictionary.
    Dictionary(Codec),
    /// As they are.
    Plain(Codec),
    /// First bytes together, second bytes together, and so on.
    Split(Codec),
}

impl FileProfile {
    /// The codec of what repeats.
    pub(super) fn codec(self) -> Codec {
        match self {
            Self::Hot => Codec::Lz4,
            Self::Merged => Codec::Zstd,
        }
    }
}

/// One or two stretches of neighbours: deltas need them.
fn sample<T>(values: &[T]) -> Vec<&[T]> {
    let len = (values.len() / 16).clamp(SAMPLE.0, SAMPLE.1);
    if values.len() <= len {
        return vec![values];
    }
    if len == SAMPLE.0 {
        let from = (values.len() - len) / 2;
        return vec![&values[from..from + len]];
    }
    [values.len() / 4, values.len() / 4 * 3].map(|at| &values[at - len / 4..at + len / 4]).to_vec()
}

/// Chooses for whole numbers.
pub(super) fn whole(values: &[i64], compressors: &mut Compressors) -> Result<Whole, ParquetError> {
    let narrow = Whole::Delta(Layout::Narrow, Codec::Plain);
    if values.len() < SAMPLED_MIN {
        return Ok(narrow);
    }
    let stretches = sample(values);
    let taken: usize = stretches.iter().map(|s| s.len()).sum();
    let layout = Layout::bytes(stretches[0]);
    let mut page = Vec::new();
    let (mut packed, mut packed_zstd, mut bytes_zstd) = (0, 0, 0);
    for stretch in &stretches {
        page.clear();
        delta::encode(&mut page, stretch, Layout::Narrow);
        packed += page.len();
        packed_zstd += len(&page, Codec::Zstd, compressors)?;
        page.clear();
        delta::encode(&mut page, stretch, layout);
        bytes_zstd += len(&page, Codec::ZstdBytes, compressors)?;
    }
    let mut best = (packed, narrow);
    // Packed bits of noise do not shrink, those of leaps between constants do.
    let dearer = [
        (packed_zstd, Whole::Delta(Layout::Narrow, Codec::Zstd)),
        (bytes_zstd, Whole::Delta(layout, Codec::ZstdBytes)),
    ];
    for (size, choice) in dearer {
        let priced = size * (100 + MARGIN) / 100;
        if priced < best.0 {
            best = (priced, choice);
        }
    }
    if dictionary(&stretches, taken, values.len()) * (100 + MARGIN) / 100 < best.0 {
        return Ok(Whole::Dictionary);
    }
    Ok(best.1)
}

/// Bytes of the sample behind a dictionary, its share of the dictionary included.
fn dictionary(stretches: &[&[i64]], taken: usize, all: usize) -> usize {
    let mut distinct: Vec<i64> = stretches.iter().flat_map(|s| s.iter().copied()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() * 4 > taken {
        return usize::MAX / 200;
    }
    let share = (distinct.len() * 8 * taken).div_ceil(all);
    share + taken * bits(distinct.len() as u64 - 1).max(1) / 8
}

fn len(page: &[u8], codec: Codec, compressors: &mut Compressors) -> Result<usize, ParquetError> {
    Ok(compressors.compress(page, codec)?.map_or(page.len(), |small| small.len()))
}

/// Chooses for floats that are no decimals.
pub(super) fn floats(
    values: &[f64],
    profile: FileProfile,
    compressors: &mut Compressors,
) -> Result<Floats, ParquetError> {
    if few_distinct(values) {
        return Ok(Floats::Dictionary(profile.codec()));
    }
    if values.len() < SAMPLED_MIN {
        return Ok(Floats::Plain(Codec::Plain));
    }
    let stretch = sample(values)[0];
    let plain = plain(stretch);
    let codec = profile.codec();
    let mut best = (plain.len(), Floats::Plain(Codec::Plain));
    let mut better = |size: usize, choice| {
        if size * (100 + MARGIN) / 100 < best.0 {
            best = (size, choice);
        }
    };
    better(len(&plain, codec, compressors)?, Floats::Plain(codec));
    if profile == FileProfile::Merged {
        better(len(&split(stretch), codec, compressors)?, Floats::Split(codec));
    }
    Ok(best.1)
}

/// Whether a sample repeats its values enough for a dictionary to pay.
fn few_distinct(values: &[f64]) -> bool {
    let step = (values.len() / SAMPLE.0).max(1);
    let mut sample: Vec<u64> = values.iter().step_by(step).map(|v| v.to_bits()).collect();
    let taken = sample.len();
    sample.sort_unstable();
    sample.dedup();
    sample.len() * 2 <= taken
}

/// PLAIN.
pub(super) fn plain(values: &[f64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * 8);
    values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
    out
}

/// BYTE_STREAM_SPLIT.
pub(super) fn split(values: &[f64]) -> Vec<u8> {
    let mut out = vec![0; values.len() * 8];
    for (at, value) in values.iter().enumerate() {
        for (stream, byte) in value.to_le_bytes().into_iter().enumerate() {
            out[stream * values.len() + at] = byte;
        }
    }
    out
}
