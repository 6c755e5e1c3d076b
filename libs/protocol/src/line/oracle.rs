//! The `influxdb-line-protocol` crate (InfluxDB 3's parser) as the oracle: what it accepts is
//! accepted here with the same values, what it refuses is refused, but for the list in
//! [`deliberate`].

use std::collections::BTreeMap;

use influxdb_line_protocol::{FieldValue, ParsedLine};
use proptest::prelude::*;

use super::*;
use crate::{batch::SeriesKey, name::NameOf, value::FieldValues};

/// One row, its values as text that tells the type.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    table: String,
    tags: Vec<(String, String)>,
    fields: BTreeMap<String, String>,
    time: i64,
}

fn oracle_row(line: &ParsedLine<'_>) -> Row {
    let tags = line.series.tag_set.iter().flatten();
    let mut tags: Vec<_> = tags.map(|(n, v)| (n.to_string(), v.to_string())).collect();
    tags.sort();
    let value = |v: &FieldValue<'_>| match v {
        FieldValue::I64(v) => format!("{v}i"),
        FieldValue::U64(v) => format!("{v}u"),
        FieldValue::F64(v) => format!("{:x}", v.to_bits()),
        FieldValue::String(v) => format!("{:?}", v.as_str()),
        FieldValue::Boolean(v) => format!("{v}"),
    };
    let fields = line.field_set.iter().map(|(n, v)| (n.to_string(), value(v))).collect();
    Row {
        table: line.series.measurement.to_string(),
        tags,
        fields,
        time: line.timestamp.unwrap_or(0),
    }
}

/// The rows of the batches in the order of their lines.
fn our_rows(parsed: &Parsed) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in &parsed.tables {
        batch.check().unwrap();
        for row in 0..batch.rows() {
            let tags = batch.series_keys[batch.series[row] as usize].tags();
            let value = |values: &FieldValues| match values {
                FieldValues::I64(v) => format!("{}i", v[row]),
                FieldValues::U64(v) => format!("{}u", v[row]),
                FieldValues::F64(v) => format!("{:x}", v[row].to_bits()),
                FieldValues::Utf8(v) => format!("{:?}", v.get(row)),
                FieldValues::Bool(v) => format!("{}", v[row]),
            };
            let there = batch.fields.iter().filter(|f| f.present.get(row));
            let this = Row {
                table: batch.table.clone(),
                tags: tags.map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
                fields: there.map(|f| (f.name.clone(), value(&f.values))).collect(),
                time: batch.time[row],
            };
            rows.push((batch.line[row], this));
        }
    }
    rows.sort_by_key(|(line, _)| *line);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Why a line that the oracle accepts is refused here.
fn deliberate(line: &ParsedLine<'_>, raw: &str) -> Option<&'static str> {
    let tags: Vec<&str> =
        line.series.tag_set.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let fields: Vec<&str> = line.field_set.iter().map(|(name, _)| name.as_str()).collect();
    let names = |of: NameOf, names: &[&str]| names.iter().any(|n| check_refuses(of, n));
    if check_refuses(NameOf::Table, &line.series.measurement)
        || names(NameOf::Tag, &tags)
        || names(NameOf::Field, &fields)
    {
        return Some("a name against the rules");
    }
    let twice = |names: &[&str]| (1..names.len()).any(|i| names[..i].contains(&names[i]));
    if twice(&tags) || twice(&fields) {
        return Some("a name twice");
    }
    if tags.iter().any(|name| fields.contains(name)) {
        return Some("a tag and a field of one name");
    }
    if line.field_set.iter().any(|(_, v)| matches!(v, FieldValue::F64(v) if !v.is_finite())) {
        return Some("an infinite value");
    }
    if bare_commas(raw) != tags.len() + fields.len() - 1 {
        return Some("a comma without a backslash in a name");
    }
    if raw.contains("\\\n") {
        return Some("a backslash at the end of a line");
    }
    None
}

/// Commas outside of texts that have no backslash before them: one before each tag and between
/// fields, if none is in a name.
fn bare_commas(raw: &str) -> usize {
    let (mut count, mut quoted, mut before) = (0, false, ' ');
    let mut chars = raw.trim_start().chars();
    let mut fields = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            ' ' => fields = true,
            '"' if quoted || (fields && before == '=') => quoted = !quoted,
            ',' if !quoted => count += 1,
            _ => {}
        }
        before = c;
    }
    count
}

fn check_refuses(of: NameOf, name: &str) -> bool {
    crate::name::check_name(of, name).is_err()
}

/// Whether a line that the oracle refuses may be accepted here.
fn wider(raw: &str) -> Option<&'static str> {
    let line = raw.strip_suffix('\r').unwrap_or(raw);
    if line.ends_with([' ', '\t']) {
        return Some("blanks at the end");
    }
    if line.len() < raw.len() {
        return Some("CRLF");
    }
    if line.contains('\t') {
        return Some("a tab in a tag value");
    }
    if ["\\\\ ", "\\\\,", "\\\\="].iter().any(|end| line.contains(end)) {
        return Some("a name or tag value that ends with a backslash");
    }
    // `1.` and `.5`
    let bytes = line.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let odd = |at: usize| bytes[at] == b'.' && digit(at.checked_sub(1)) != digit(Some(at + 1));
    (0..bytes.len()).any(odd).then_some("a number that starts or ends with its point")
}

/// Compares one line; what was different on purpose.
fn compare(raw: &str) -> Option<&'static str> {
    let theirs: Vec<_> = influxdb_line_protocol::parse_lines(raw).collect();
    let ours = parse(raw.as_bytes(), &LineOptions::default());
    let rows = our_rows(&ours);
    assert_eq!(ours.lines, rows.len() as u64 + ours.refused, "{raw:?}");
    if theirs.iter().all(Result::is_ok) {
        let lines: Vec<_> = theirs.into_iter().flatten().collect();
        if let Some(why) = lines.iter().find_map(|line| deliberate(line, raw)) {
            return Some(why);
        }
        assert_eq!(ours.refusals, [], "{raw:?} is accepted by the oracle");
        assert_eq!(rows, lines.iter().map(oracle_row).collect::<Vec<_>>(), "{raw:?}");
        return None;
    }
    if ours.refused == 0 {
        let why = wider(raw);
        assert!(why.is_some(), "{raw:?} is refused by the oracle but gave {rows:?}");
        return why;
    }
    None
}

/// So many cases, or as many as `PROPTEST_CASES` says for a long run.
fn cases(usual: u32) -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return ProptestConfig::default();
    }
    ProptestConfig::with_cases(usual)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z]{1,6}",
        2 => r"([a-z]|\\[,= ])[a-z_.é]{0,4}(\\[,= x])?[a-z]",
        1 => "(time|__x|_rejected|_ok|system\\.cpu|\"q\"|a=b|a,b)",
    ]
}

fn tag_value() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-zA-Z0-9_./-]{1,8}", 1 => r#"[a-z=é"]{1,3}\\[,= n][a-z]{1,3}"#]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|v| format!("{v}i")),
        any::<u64>().prop_map(|v| format!("{v}u")),
        any::<i16>().prop_map(|v| format!("{v}i")),
        proptest::num::f64::NORMAL.prop_map(|v| format!("{v}")),
        proptest::num::f64::NORMAL.prop_map(|v| format!("{v:e}")),
        r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        Just("t".to_owned()),
        "(T|true|True|TRUE|f|F|false|False|FALSE|tRue)",
        r#""([a-z ,=é]|\\"|\\\\|\\n)*""#,
    ]
}

/// Lines that are mostly good.
fn line() -> impl Strategy<Value = String> {
    let tags = proptest::collection::vec((name(), tag_value()), 0..4);
    let fields = proptest::collection::vec((name(), value()), 1..5);
    let time = proptest::option::of(prop_oneof![
        any::<i64>().prop_map(|t| t.to_string()),
        "-?[0-9]{1,25}",
    ]);
    ("[ \t]{0,2}", name(), tags, " {1,2}", fields, time).prop_map(
        |(lead, table, tags, space, fields, time)| {
            let tags: String = tags.iter().map(|(n, v)| format!(",{n}={v}")).collect();
            let fields: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={v}")).collect();
            let time = time.map(|t| format!(" {t}")).unwrap_or_default();
            format!("{lead}{table}{tags}{space}{}{time}", fields.join(","))
        },
    )
}

/// Lines of few tables, series and fields, so that one predicts the next, some spoilt.
fn repeated() -> impl Strategy<Value = String> {
    let prefix = prop::sample::select(
        &[
            "m",
            "n",
            "m,a=1",
            "m,a=2",
            "m,a=1,b=1",
            "m,b=1,a=1",
            "m,b=2,a=1",
            "m,c=1,b=2",
            "n,a=1",
            "m,a=\\ 1",
            "m,w=1",
        ][..],
    );
    let field = (
        prop::sample::select(&["v", "w", "a", "long_name", "longest_name_of_all"][..]),
        prop::sample::select(
            &[
                "1",
                "1.5",
                "2i",
                "-123456789i",
                "12345678i",
                "3u",
                "t",
                "\"x\"",
                "\"\"",
                "oops",
                "1e400",
            ][..],
        ),
    );
    let time = prop::sample::select(&["", " 1", " 1700000000000000000", " x", " 1 "][..]);
    (prefix, proptest::collection::vec(field, 1..4), time).prop_map(|(prefix, fields, time)| {
        let fields: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={v}")).collect();
        format!("{prefix} {}{time}", fields.join(","))
    })
}

/// A line with a few characters changed, put in or taken out.
fn mutated() -> impl Strategy<Value = String> {
    let change = (any::<prop::sample::Index>(), 0..3, r#"[ ,=\\"\t.eEiut0-9#a-z+-]"#);
    (line(), proptest::collection::vec(change, 1..4)).prop_map(|(line, changes)| {
        let mut chars: Vec<char> = line.chars().collect();
        for (at, how, with) in changes {
            let at = at.index(chars.len());
            match how {
                0 => {
                    chars.remove(at);
                }
                1 => chars.splice(at..at, with.chars()).for_each(drop),
                _ => chars.splice(at..=at, with.chars()).for_each(drop),
            }
            if chars.is_empty() {
                chars.push('m');
            }
        }
        chars.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn good_lines_are_read_as_the_oracle_reads_them(line in line()) {
        compare(&line);
    }

    #[test]
    fn spoilt_lines_are_read_or_refused_as_the_oracle_does(line in mutated()) {
        compare(&line);
    }
}

proptest! {
    #![proptest_config(cases(512))]

    /// Good rows of a body are read as each alone, whatever stands between them.
    #[test]
    fn a_body_is_its_lines(lines in proptest::collection::vec(prop_oneof![3 => line(), 1 => mutated(), 1 => Just("# note".to_owned()), 1 => Just(String::new())], 0..12), crlf in any::<bool>()) {
        // A quote may join lines, and a backslash at an end is not a line's end for the oracle.
        let lines: Vec<String> = lines.into_iter().filter(|l| !l.contains('"') && !l.ends_with('\\')).collect();
        let body = lines.join(if crlf { "\r\n" } else { "\n" });
        let options = LineOptions::default();
        let whole = parse(body.as_bytes(), &options);
        let mut rows = Vec::new();
        let mut refused = 0;
        for line in &lines {
            let alone = parse(line.as_bytes(), &options);
            rows.extend(our_rows(&alone));
            refused += alone.refused;
        }
        prop_assert_eq!(our_rows(&whole), rows);
        prop_assert_eq!(whole.refused, refused);
        prop_assert_eq!(whole, parse_seeded(body.as_bytes(), &options, 12345));
    }

    /// The same where prediction is mostly right, and wrong in every way.
    #[test]
    fn a_body_of_repeated_series_is_its_lines(lines in proptest::collection::vec(repeated(), 0..40)) {
        let options = LineOptions { refusals_max: usize::MAX, ..LineOptions::default() };
        let whole = parse(lines.join("\n").as_bytes(), &options);
        let (mut rows, mut refusals) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(&lines) {
            let alone = parse(line.as_bytes(), &options);
            rows.extend(our_rows(&alone));
            refusals.extend(alone.refusals.into_iter().map(|r| Refusal { line: number, ..r }));
        }
        prop_assert_eq!(our_rows(&whole), rows);
        prop_assert_eq!(whole.refusals, refusals);
    }

    /// Lines to a batch, to a frame and back, to Arrow and its stream and back.
    #[test]
    fn rows_survive_every_form(lines in proptest::collection::vec(prop_oneof![repeated(), line()], 0..40)) {
        let parsed = parse(lines.join("\n").as_bytes(), &LineOptions::default());
        for batch in parsed.tables {
            let mut frame = Vec::new();
            crate::frame::encode_batch(&batch, &mut frame);
            prop_assert_eq!(&crate::frame::decode_batch(&frame).unwrap(), &batch);
            let record = crate::arrow::to_record_batch(&batch, "d").unwrap();
            let record = crate::arrow::tests::through_a_stream(&record);
            let back = crate::arrow::from_record_batch(&record, &RowLimits::default());
            let (database, back, refusals) = back.unwrap();
            prop_assert_eq!(refusals, []);
            prop_assert_eq!(database, "d");
            // A record batch numbers its rows itself.
            let line = (1..=batch.rows() as u32).collect();
            prop_assert_eq!(back, TableBatch { line, ..batch });
        }
    }

    #[test]
    fn any_bytes_give_consistent_batches(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"m,a=b \" \\ v=1i\n\r\t#"[..])], 0..200)) {
        let parsed = parse(&bytes, &LineOptions::default());
        our_rows(&parsed);
    }

    /// Exports come back.
    #[test]
    fn what_is_written_is_read_back(batch in crate::frame::tests::batch()) {
        let mut lines = Vec::new();
        write_lines(&batch, &mut lines);
        let parsed = parse(&lines, &LineOptions::default());
        prop_assert_eq!(&parsed.refusals, &[]);
        let kept = TableBatch { line: (1..=batch.rows() as u32).collect(), ..batch };
        let rows = our_rows(&Parsed { tables: vec![kept], ..Parsed::default() });
        let rows: Vec<Row> = rows.into_iter().filter(|row| !row.fields.is_empty()).collect();
        prop_assert_eq!(our_rows(&parsed), rows);
    }

    /// Any text that the rules allow survives as a table, tag, value, field and text.
    #[test]
    fn any_allowed_text_survives_an_export(table in "\\PC{1,6}", tag in "\\PC{1,6}", value in "[^\n]{1,6}", field in "\\PC{1,6}", text in any::<String>()) {
        prop_assume!(!check_refuses(NameOf::Table, &table) && !check_refuses(NameOf::Tag, &tag));
        prop_assume!(!check_refuses(NameOf::Field, &field) && tag != field);
        let batch = TableBatch {
            table,
            time: vec![1],
            series: vec![0],
            series_keys: vec![SeriesKey::from_sorted([(tag.as_str(), value.as_str())])],
            fields: vec![crate::batch::FieldColumn {
                name: field,
                values: FieldValues::Utf8(crate::value::Texts { ends: vec![text.len() as u32], bytes: text.into_bytes() }),
                present: crate::batch::Presence::full(1),
            }],
            line: vec![1],
        };
        let mut lines = Vec::new();
        write_lines(&batch, &mut lines);
        prop_assert_eq!(parse(&lines, &LineOptions::default()).tables, [batch]);
    }
}

#[test]
fn each_deliberate_difference_is_one() {
    for (line, why) in [
        ("_rejected v=1", "a name against the rules"),
        ("m,time=1 v=1", "a name against the rules"),
        ("m __x=1", "a name against the rules"),
        ("m,a=1,a=2 v=1", "a name twice"),
        ("m v=1,v=2", "a name twice"),
        ("m,a=1 a=1", "a tag and a field of one name"),
        ("m v=1e999", "an infinite value"),
        ("m,a,b=1 v=1", "a comma without a backslash in a name"),
        ("m v,w=1", "a comma without a backslash in a name"),
        ("m v=1 ", "blanks at the end"),
        ("m v=1 1\t", "blanks at the end"),
        ("m v=1 1\r", "CRLF"),
        ("m,a=b\tc v=1", "a tab in a tag value"),
        ("m,a=C:\\\\ v=1", "a name or tag value that ends with a backslash"),
        ("m v=1.", "a number that starts or ends with its point"),
        ("m v=-.5", "a number that starts or ends with its point"),
    ] {
        assert_eq!(compare(line), Some(why), "{line:?}");
    }
}
