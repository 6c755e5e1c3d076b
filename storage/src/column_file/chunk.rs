//! One column chunk: its pages one behind the other, and what the footer says of them.
//!
//! Owns: page headers, compression, offsets. Never: chooses an encoding.
//! Data pages are of version 2: levels first and never compressed, then values, compressed where
//! that makes them smaller.

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, OffsetIndexBuilder},
        statistics::Statistics,
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};
use zstd::zstd_safe::CParameter;

/// What stands behind an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// Nothing.
    Plain,
    /// LZ4 blocks.
    Lz4,
    /// zstd, level 1.
    Zstd,
    /// zstd for single bytes: hardly any search for repetitions, which in deltas are chance and
    /// cost more than they save (2.4 instead of 2.8 bits a value of a walk), and entropy coding.
    ZstdBytes,
}

/// Compressors that live as long as a file is written.
#[derive(Default)]
pub(super) struct Compressors {
    /// Made when first needed: it is larger than a small file.
    zstd: Option<zstd::bulk::Compressor<'static>>,
    bytes: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressors {
    /// `data` under `codec`; `None` for [`Codec::Plain`].
    pub(super) fn compress(
        &mut self,
        data: &[u8],
        codec: Codec,
    ) -> Result<Option<Vec<u8>>, ParquetError> {
        match codec {
            Codec::Plain => Ok(None),
            Codec::Lz4 => Ok(Some(lz4_flex::block::compress(data))),
            Codec::Zstd => {
                let compressor = match &mut self.zstd {
                    Some(compressor) => compressor,
                    none => none.insert(zstd::bulk::Compressor::new(1)?),
                };
                Ok(Some(compressor.compress(data)?))
            }
            Codec::ZstdBytes => {
                let compressor = match &mut self.bytes {
                    Some(compressor) => compressor,
                    none => {
                        let compressor = none.insert(zstd::bulk::Compressor::new(1)?);
                        compressor.set_parameter(CParameter::MinMatch(7))?;
                        compressor.set_parameter(CParameter::HashLog(6))?;
                        compressor
                    }
                };
                Ok(Some(compressor.compress(data)?))
            }
        }
    }
}

/// See the module head.
pub(super) struct Chunk<'a> {
    descr: ColumnDescPtr,
    codec: Codec,
    compressors: &'a mut Compressors,
    sink: TrackedWrite<Vec<u8>>,
    index: OffsetIndexBuilder,
    encodings: Vec<Encoding>,
    dictionary: Option<i64>,
    first_page: Option<i64>,
    rows: u64,
    uncompressed: i64,
}

impl<'a> Chunk<'a> {
    pub(super) fn new(
        descr: ColumnDescPtr,
        codec: Codec,
        compressors: &'a mut Compressors,
    ) -> Self {
        Self {
            descr,
            codec,
            compressors,
            sink: TrackedWrite::new(Vec::new()),
            index: OffsetIndexBuilder::new(),
            encodings: vec![Encoding::RLE],
            dictionary: None,
            first_page: None,
            rows: 0,
            uncompressed: 0,
        }
    }

    /// The dictionary's values, before any data page.
    pub(super) fn dictionary(&mut self, values: Vec<u8>, count: u32) -> Result<(), ParquetError> {
        let len = values.len();
        let buf = match self.compressors.compress(&values, self.codec)? {
            Some(small) => small.into(),
            None => values.into(),
        };
        let encoding = Encoding::PLAIN;
        let page = Page::DictionaryPage { buf, num_values: count, encoding, is_sorted: false };
        self.dictionary = Some(self.write(page, len, encoding)?.0);
        Ok(())
    }

    /// A page of `rows` rows, of which `nulls` are absent: its levels (empty in a required
    /// column) and its encoded values.
    pub(super) fn page(
        &mut self,
        (rows, nulls): (usize, usize),
        levels: Vec<u8>,
        values: &[u8],
        encoding: Encoding,
    ) -> Result<(), ParquetError> {
        let small = self.compressors.compress(values, self.codec)?;
        let small = small.filter(|small| small.len() < values.len());
        let (levels_len, uncompressed) = (levels.len(), levels.len() + values.len());
        let mut buf = levels;
        buf.extend_from_slice(small.as_deref().unwrap_or(values));
        let page = Page::DataPageV2 {
            buf: buf.into(),
            num_values: rows as u32,
            encoding,
            num_nulls: nulls as u32,
            num_rows: rows as u32,
            def_levels_byte_len: levels_len as u32,
            rep_levels_byte_len: 0,
            is_compressed: small.is_some(),
            statistics: None,
        };
        let (offset, len) = self.write(page, uncompressed, encoding)?;
        self.first_page.get_or_insert(offset);
        self.index.append_row_count(rows as i64);
        self.index.append_offset_and_size(offset, len);
        self.rows += rows as u64;
        Ok(())
    }

    /// Where the page stands and how long it is, header included.
    fn write(
        &mut self,
        page: Page,
        uncompressed: usize,
        encoding: Encoding,
    ) -> Result<(i64, i32), ParquetError> {
        if !self.encodings.contains(&encoding) {
            self.encodings.push(encoding);
        }
        let page = CompressedPage::new(page, uncompressed);
        let done = SerializedPageWriter::new(&mut self.sink).write_page(page)?;
        self.uncompressed += done.uncompressed_size as i64;
        let len = i32::try_from(done.bytes_written)
            .map_err(|_| ParquetError::General("a page is larger than 2 GiB".to_owned()))?;
        Ok((done.offset as i64, len))
    }

    /// The chunk's bytes and its part of the footer.
    pub(super) fn finish(
        self,
        statistics: Statistics,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        let bytes = Bytes::from(self.sink.into_inner()?);
        let compression = match self.codec {
            Codec::Plain => Compression::UNCOMPRESSED,
            Codec::Lz4 => Compression::LZ4_RAW,
            Codec::Zstd | Codec::ZstdBytes => Compression::ZSTD(ZstdLevel::default()),
        };
        let metadata = ColumnChunkMetaData::builder(self.descr)
            .set_encodings(self.encodings)
            .set_compression(compression)
            .set_num_values(self.rows as i64)
            .set_total_compressed_size(bytes.len() as i64)
            .set_total_uncompressed_size(self.uncompressed)
            .set_data_page_offset(self.first_page.unwrap_or(0))
            .set_dictionary_page_offset(self.dictionary)
            .set_statistics(statistics)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: self.rows,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(self.index.build()),
        };
        Ok((bytes, close))
    }
}
