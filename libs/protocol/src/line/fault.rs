//! What can be wrong with a row, as small values, and their sentences.
//!
//! Owns: the code and the wording of every refusal of line protocol.

use crate::{
    batch::{Refusal, RefusalCode, RowLimits},
    name::{BadName, NameOf},
};

/// Characters of a refused line that are sent back.
const RAW_CHARS_MAX: usize = 256;
/// Characters of the offending text in a sentence.
const TOKEN_CHARS_MAX: usize = 40;

/// Something wrong at a byte of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) kind: Kind,
}

impl Fault {
    pub(super) const fn new(at: usize, kind: Kind) -> Self {
        Self { at, kind }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    NotUtf8,
    NoTable,
    NoFields,
    TagExpected,
    TagNoEquals,
    TagNoValue,
    FieldExpected,
    FieldNoEquals,
    OpenQuote,
    AfterValue,
    AfterTime,
    NotAValue,
    IntegerRange,
    UnsignedRange,
    UnsignedSign,
    NotFinite,
    NotATime,
    TimeRange,
    Name(NameOf, BadName),
    TagTwice,
    FieldTwice,
    TagAndField,
    LongLine,
    LongTag,
    LongText,
    LongBody,
    ManyTags,
    ManyFields,
    ManyColumns,
    ManyCells,
}

impl Kind {
    fn code(self) -> RefusalCode {
        match self {
            Self::NotUtf8 => RefusalCode::NotUtf8,
            Self::NoTable
            | Self::NoFields
            | Self::TagExpected
            | Self::TagNoEquals
            | Self::TagNoValue
            | Self::FieldExpected
            | Self::FieldNoEquals
            | Self::OpenQuote
            | Self::AfterValue
            | Self::AfterTime => RefusalCode::Syntax,
            Self::NotAValue | Self::IntegerRange | Self::UnsignedRange | Self::UnsignedSign => {
                RefusalCode::BadValue
            }
            Self::NotFinite => RefusalCode::NotFinite,
            Self::NotATime | Self::TimeRange => RefusalCode::BadTime,
            Self::Name(_, BadName::Long) => RefusalCode::TooLong,
            Self::Name(..) | Self::TagTwice | Self::FieldTwice | Self::TagAndField => {
                RefusalCode::BadName
            }
            Self::LongLine | Self::LongTag | Self::LongText | Self::LongBody => {
                RefusalCode::TooLong
            }
            Self::ManyTags | Self::ManyFields | Self::ManyColumns | Self::ManyCells => {
                RefusalCode::Quota
            }
        }
    }

    fn sentence(self, token: &str, limits: &RowLimits) -> String {
        match self {
            Self::NotUtf8 => "the line is not UTF-8 from this byte on".to_owned(),
            Self::NoTable => "the line starts without a table name".to_owned(),
            Self::NoFields => {
                "the line has no fields: after the table and its tags come a space and `name=value`"
                    .to_owned()
            }
            Self::TagExpected => "a tag `name=value` must follow the comma".to_owned(),
            Self::TagNoEquals => format!("tag `{token}` has no `=value`"),
            Self::TagNoValue => "the tag's value is empty: leave the tag out instead".to_owned(),
            Self::FieldExpected => "a field `name=value` must follow the comma".to_owned(),
            Self::FieldNoEquals => format!("field `{token}` has no `=value`"),
            Self::OpenQuote => "the quoted text has no closing quote".to_owned(),
            Self::AfterValue => {
                format!("`{token}` follows a value: a comma, a space or the line's end must")
            }
            Self::AfterTime => format!("`{token}` follows the time, which ends the line"),
            Self::NotAValue if token.is_empty() => {
                "the field's value is empty: leave the field out instead".to_owned()
            }
            Self::NotAValue => {
                format!("`{token}` is not a number, boolean or quoted string")
            }
            Self::IntegerRange => {
                format!("`{token}` does not fit a signed integer of 64 bits")
            }
            Self::UnsignedRange => {
                format!("`{token}` does not fit an unsigned integer of 64 bits")
            }
            Self::UnsignedSign => format!("`{token}` is unsigned and cannot have a sign"),
            Self::NotFinite => {
                format!(
                    "`{token}` is not a finite number that fits 64 bits: leave the field out instead"
                )
            }
            Self::NotATime => format!(
                "`{token}` is not a time: an integer in the unit that the precision parameter says"
            ),
            Self::TimeRange => {
                format!(
                    "time `{token}` does not fit 64 bits of nanoseconds: check the precision parameter"
                )
            }
            Self::Name(of, why) => format!("{} `{token}` is refused: {why}", of.word()),
            Self::TagTwice => format!("tag `{token}` occurs twice"),
            Self::FieldTwice => format!("field `{token}` occurs twice"),
            Self::TagAndField => format!("`{token}` is a tag and a field of the same row"),
            Self::LongLine => format!("the line is longer than {} bytes", limits.line_bytes),
            Self::LongTag => format!("the tag's value is longer than {} bytes", limits.text_bytes),
            Self::LongText => format!("the text is longer than {} bytes", limits.text_bytes),
            Self::LongBody => "the body is longer than 4 GiB: send smaller bodies".to_owned(),
            Self::ManyTags => format!("the row has more than {} tags", limits.tags),
            Self::ManyFields => format!("the row has more than {} fields", limits.fields),
            Self::ManyColumns => format!(
                "the body has more than {} different fields (by name and type) in one table",
                limits.fields
            ),
            Self::ManyCells => {
                "the body has too many rows for its many different fields: send smaller bodies"
                    .to_owned()
            }
        }
    }
}

fn cut(bytes: &[u8], chars: usize) -> String {
    // A character takes at most four bytes; a cut inside one would show as a replacement.
    let head = bytes.get(..4 * chars + 3).unwrap_or(bytes);
    let text = String::from_utf8_lossy(head);
    if text.chars().count() > chars {
        text.chars().take(chars).collect()
    } else {
        text.into_owned()
    }
}

/// The text that a fault is about: from its byte to the next delimiter.
fn token(from: &[u8], kind: Kind) -> String {
    let delimits = |b: &u8| match kind {
        // Names may hold equals signs and commas only behind a backslash.
        Kind::Name(NameOf::Table, _) => matches!(b, b',' | b' ' | b'\n'),
        Kind::Name(..) | Kind::TagTwice | Kind::FieldTwice | Kind::TagAndField => {
            matches!(b, b'=' | b'\n')
        }
        Kind::AfterTime => matches!(b, b'\n'),
        _ => matches!(b, b',' | b' ' | b'\n'),
    };
    let end = from.iter().position(delimits).unwrap_or(from.len());
    let text = cut(from.get(..end).unwrap_or(from), TOKEN_CHARS_MAX + 1);
    let text = text.trim_end_matches('\r');
    if text.chars().count() <= TOKEN_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(TOKEN_CHARS_MAX).chain(['…']).collect()
}

/// The refusal of the row `body[row]`; `column_base` is where its line starts.
pub(super) fn refusal(
    body: &[u8],
    column_base: usize,
    end: usize,
    line: u32,
    fault: Fault,
    limits: &RowLimits,
) -> Refusal {
    let text = body.get(column_base..end).unwrap_or_default();
    let from = body.get(fault.at..end).unwrap_or_default();
    Refusal {
        line,
        column: u32::try_from(fault.at.saturating_sub(column_base) + 1).unwrap_or(u32::MAX),
        code: fault.kind.code(),
        reason: fault.kind.sentence(&token(from, fault.kind), limits),
        raw: cut(text.strip_suffix(b"\r").unwrap_or(text), RAW_CHARS_MAX),
    }
}
