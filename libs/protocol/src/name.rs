//! Which names tables and columns may have, the same for every way in.
//!
//! Owns: the rules below and their sentences. Never: knows a table or what exists already.
//!
//! | name | rule |
//! |---|---|
//! | any | 1 to [`NAME_BYTES_MAX`] bytes of UTF-8, no control characters |
//! | any | does not start with `__`: kept for the product's own columns and tables |
//! | table | does not start with `_`: kept for the server's own tables, of which `_rejected` is one |
//! | table | does not start with `#` (line protocol could not say it) |
//! | tag, field | is not `time` |
//! | tag value | not empty, no line feed (line protocol could not say it), at most `RowLimits::text_bytes` |
//!
//! Allowed on purpose: tags and fields that start with one `_`, `system.cpu` and other names with
//! dots, names with spaces, commas, quotes, equals signs and backslashes, any language.

/// Longest table, tag or field name in bytes.
pub const NAME_BYTES_MAX: usize = 1024;

/// The table where refused rows are read.
pub const REJECTED_TABLE: &str = "_rejected";

/// What a name is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameOf {
    /// A table (measurement).
    Table,
    /// A tag column.
    Tag,
    /// A field column.
    Field,
}

impl NameOf {
    /// The word for messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Tag => "tag",
            Self::Field => "field",
        }
    }
}

/// A name that may not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// No bytes.
    #[error("it is empty")]
    Empty,
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("it is longer than {NAME_BYTES_MAX} bytes")]
    Long,
    /// A byte below 0x20, or 0x7f.
    #[error("it holds a control character")]
    Control,
    /// Starts with two underscores.
    #[error("names that start with `__` are reserved")]
    Underscores,
    /// The table of refused rows.
    #[error("`{REJECTED_TABLE}` is reserved for refused rows")]
    Rejected,
    /// A table of the server's own.
    #[error("a table's name cannot start with `_`: such tables are the server's own")]
    Own,
    /// Would be a comment in line protocol.
    #[error("a table's name cannot start with `#`")]
    Comment,
    /// `time` is the row's own time.
    #[error("`time` is reserved for the row's time")]
    Time,
}

/// Checks a name against the rules of this module.
pub fn check_name(of: NameOf, name: &str) -> Result<(), BadName> {
    if name.is_empty() {
        return Err(BadName::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(BadName::Long);
    }
    if name.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(BadName::Control);
    }
    if name.starts_with("__") {
        return Err(BadName::Underscores);
    }
    match of {
        NameOf::Table if name == REJECTED_TABLE => Err(BadName::Rejected),
        NameOf::Table if name.starts_with('_') => Err(BadName::Own),
        NameOf::Table if name.starts_with('#') => Err(BadName::Comment),
        NameOf::Tag | NameOf::Field if name == "time" => Err(BadName::Time),
        NameOf::Table | NameOf::Tag | NameOf::Field => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_are_refused_and_odd_ones_are_not() {
        let refused = |of, name: &str| check_name(of, name).unwrap_err();
        assert_eq!(refused(NameOf::Table, ""), BadName::Empty);
        assert_eq!(refused(NameOf::Table, &"n".repeat(1025)), BadName::Long);
        assert_eq!(refused(NameOf::Field, "a\nb"), BadName::Control);
        assert_eq!(refused(NameOf::Field, "__sid"), BadName::Underscores);
        assert_eq!(refused(NameOf::Table, "_rejected"), BadName::Rejected);
        assert_eq!(refused(NameOf::Table, "#note"), BadName::Comment);
        assert_eq!(refused(NameOf::Tag, "time"), BadName::Time);
        assert_eq!(refused(NameOf::Table, "_monitor"), BadName::Own);
        assert_eq!(check_name(NameOf::Tag, "_measurement"), Ok(()));
        for name in ["m_", "system.cpu", "a b", "C:\\", "\"q\"", "Straße", "温度", "="] {
            for of in [NameOf::Table, NameOf::Tag, NameOf::Field] {
                assert_eq!(check_name(of, name), Ok(()), "{name}");
            }
        }
        assert_eq!(check_name(NameOf::Table, "time"), Ok(()));
        assert_eq!(check_name(NameOf::Field, "_rejected"), Ok(()));
    }
}
