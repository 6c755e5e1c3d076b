//! Tests of `line.rs`: what goes in comes back, and hostile input is an error.

use expect_test::{Expect, expect};

use super::*;

/// Kept rows as they would be exported, table by table, then the refusals.
fn show(body: &[u8], options: &LineOptions) -> String {
    let parsed = parse(body, options);
    let mut out = Vec::new();
    for batch in &parsed.tables {
        batch.check().unwrap();
        write_lines(batch, &mut out);
    }
    let mut out = String::from_utf8(out).unwrap();
    for r in &parsed.refusals {
        out +=
            &format!("refused line {}, column {}, {:?}: {}\n", r.line, r.column, r.code, r.reason);
    }
    let kept: usize = parsed.tables.iter().map(TableBatch::rows).sum();
    assert_eq!(parsed.lines, kept as u64 + parsed.refused);
    out
}

fn check(body: &str, expect: Expect) {
    expect.assert_eq(&show(body.as_bytes(), &LineOptions::default()));
}

#[test]
fn d4_bad_row_is_named_and_the_rest_kept() {
    check(
        "m v=1 1\nm v=oops 2\nm v=3 3",
        expect![[r#"
            m v=1 1
            m v=3 3
            refused line 2, column 5, BadValue: `oops` is not a number, boolean or quoted string
        "#]],
    );
}

#[test]
fn every_kind_of_value_is_read() {
    check(
        "m f=1,g=-0.5e-3,h=1E+2,i=-9223372036854775808i,u=18446744073709551615u 1\n\
         m a=t,b=T,c=true,d=True,e=TRUE 2\nm a=f,b=F,c=false,d=False,e=FALSE 3\n\
         m s=\"\",q=\"say \\\"hi\\\"\",b=\"C:\\\\x\\n\",l=\"two\nlines, a=b 7\" 4\nm f=1 5",
        expect![[r#"
            m f=1,g=-0.0005,h=100,i=-9223372036854775808i,u=18446744073709551615u 1
            m a=true,b=true,c=true,d=true,e=true 2
            m a=false,b=false,c=false,d=false,e=false 3
            m s="",q="say \"hi\"",b="C:\\x\\n",l="two
            lines, a=b 7" 4
            m f=1 5
        "#]],
    );
}

#[test]
fn escapes_are_undone_and_others_are_not() {
    check(
        "we\\ a\\,t=h\\er,ta\\ g=v\\=a\\,l\\x fi\\ el\\,d\\=1=1 1\nm,a=b=c v=1 2\nm,p=C:\\\\ v=1 3\n=,\\==\\  \\ =1 4",
        expect![[r#"
            we\ a\,t=h\\er,ta\ g=v\=a\,l\\x fi\ el\,d\=1=1 1
            m,a=b\=c v=1 2
            m,p=C:\\ v=1 3
            =,\==\  \ =1 4
        "#]],
    );
}

#[test]
fn comments_empty_lines_blanks_and_crlf_are_nothing() {
    check(
        "# a=\"b\n\r\n  \t m v=1 1  \r\n\n#\n \r\nm v=2   2\t\n   # indented\nm,a=b   v=3\r",
        expect![[r#"
            m v=1 1
            m v=2 2
            m,a=b v=3 0
        "#]],
    );
    assert_eq!(parse(b"", &LineOptions::default()), Parsed::default());
    assert_eq!(parse(b" \n\t\r\n# x", &LineOptions::default()), Parsed::default());
}

#[test]
fn times_are_counted_in_the_unit_that_the_request_says() {
    let ns = |precision: &str, time: &str| {
        let precision = precision.parse().unwrap();
        let options = LineOptions { precision, default_time_ns: 7, ..LineOptions::default() };
        parse(format!("m v=1 {time}").as_bytes(), &options).tables[0].time[0]
    };
    let second = 1_000_000_000;
    let words = [
        "ns",
        "n",
        "nanosecond",
        "us",
        "u",
        "µ",
        "microsecond",
        "ms",
        "millisecond",
        "s",
        "second",
        "m",
        "h",
    ];
    let read: Vec<i64> = words.iter().map(|word| ns(word, "-3")).collect();
    let expected = [
        1,
        1,
        1,
        1000,
        1000,
        1000,
        1000,
        1_000_000,
        1_000_000,
        second,
        second,
        60 * second,
        3600 * second,
    ];
    assert_eq!(read, expected.map(|unit| -3 * unit));
    assert_eq!(ns("ms", ""), 7, "a row without a time has the request's");
    let new_year = 1_767_225_600;
    for time in [new_year, new_year * 1000, new_year * 1_000_000, new_year * second] {
        assert_eq!(ns("auto", &time.to_string()), new_year * second);
    }
    assert_eq!(
        "d".parse::<Precision>().unwrap_err().to_string(),
        "precision `d` is unknown: use ns, us, ms, s, m, h or auto"
    );
}

#[test]
fn one_series_is_one_however_it_is_spelt() {
    let parsed = parse(
        b"m,a=1,b=2 v=1 1\nm,b=2,a=1 v=2 2\nm,a=1,b=3 v=3 3\nm,b=3,a=1 v=4 4\nm,a=\\1,b=2 v=5 5\n\\m,a=1 v=6 6\nm,\\a=1 v=7 7",
        &LineOptions::default(),
    );
    let m = &parsed.tables[0];
    assert_eq!(m.series, [0, 0, 1, 1, 2, 3]);
    assert_eq!(m.series_keys.len(), 4);
    assert_eq!(parsed.tables[1].table, "\\m");
    let parsed = parse(
        b"a\\,b,x=\\,y v=1 1\na\\,b,x=\\,y v=1 2\nm,x=\\  v=1\nm,x=\\  v=1",
        &LineOptions::default(),
    );
    assert_eq!(parsed.tables[0].series, [0, 0]);
    assert_eq!(parsed.tables[1].series, [0, 0]);
}

#[test]
fn a_refused_row_leaves_nothing_behind() {
    let parsed = parse(
        b"m,h=a x=1,s=\"one\" 1\nm,h=b x=2,s=\"two\",only=1i,y=oops 2\nm,h=a x=3,s=\"three\" 3\nn,h=c v=1,v=2\nm,h=c x=1,t=1i,x=2 4\nm,h=d t=2,x=oops\nm,h=a y=1 5",
        &LineOptions::default(),
    );
    assert_eq!(parsed.refused, 4);
    let good = parse(
        b"m,h=a x=1,s=\"one\" 1\n\nm,h=a x=3,s=\"three\" 3\n\n\n\nm,h=a y=1 5",
        &LineOptions::default(),
    );
    assert_eq!(good.tables.len(), 1);
    let line = vec![1, 3, 7];
    assert_eq!(parsed.tables, [TableBatch { line, ..good.tables[0].clone() }]);
}

#[test]
fn a_refused_row_is_taken_back_from_the_column_that_was_predicted() {
    // `w` has two columns, and the second row wrote the one that the third is not predicted to.
    check(
        "m v=1,w=2i 1\nm w=1,v=oops\nm v=1,w=2i,v=1\nm v=3,w=4i 2",
        expect![[r#"
            m v=1,w=2i 1
            m v=3,w=4i 2
            refused line 2, column 9, BadValue: `oops` is not a number, boolean or quoted string
            refused line 3, column 12, BadName: field `v` occurs twice
        "#]],
    );
}

#[test]
fn d4_the_first_refusals_are_listed_and_all_are_counted() {
    let body = "m v=x\n".repeat(1000);
    let parsed = parse(body.as_bytes(), &LineOptions { refusals_max: 3, ..LineOptions::default() });
    assert_eq!((parsed.refusals.len(), parsed.refused, parsed.lines), (3, 1000, 1000));
    assert_eq!(parsed.refusals[2].line, 3);
}

#[test]
fn a_refusal_shows_256_characters_of_its_line() {
    for c in ["x", "é", "温"] {
        let body = format!("m v={}\r\n", c.repeat(1000));
        let parsed = parse(body.as_bytes(), &LineOptions::default());
        assert_eq!(parsed.refusals[0].raw, format!("m v={}", c.repeat(252)));
    }
    check(
        &format!("m v={}", "x".repeat(100)),
        expect![[r#"
            refused line 1, column 5, BadValue: `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…` is not a number, boolean or quoted string
        "#]],
    );
}

#[test]
fn many_names_and_many_rows_do_not_unfold_without_end() {
    let names: String = (0..1025).map(|i| format!("m f{i}=1\n")).collect();
    let body = names + &"m f0=1\n".repeat(20_000);
    let parsed = parse(body.as_bytes(), &LineOptions::default());
    let batch = &parsed.tables[0];
    batch.check().unwrap();
    assert_eq!(batch.fields.len(), 1024);
    assert_eq!(batch.rows() * batch.fields.len(), crate::batch::CELLS_MAX);
    assert_eq!(parsed.refusals[0].line, 1025);
    expect![[r#"
        the body has more than 1024 different fields (by name and type) in one table
        the body has too many rows for its many different fields: send smaller bodies
    "#]]
    .assert_eq(&format!("{}\n{}\n", parsed.refusals[0].reason, parsed.refusals[1].reason));
    assert_eq!(parsed.refused, 21_025 - batch.rows() as u64);
}

#[test]
fn what_is_wrong_is_said_so_that_it_can_be_mended() {
    check(
        "m,a=b\n m,a= v=1\nm,a v=1\nm v=1,\nm v= 1\nm v=\"a\"b 1\nm v=\"a 1\nm v=-1u\nm v=1 2026-01-01\nm v=1 99999999999999999999\nm v=1 1 1\nm v=inf\n_rejected v=1\nm,time=x v=1\nm v=1,v=1\nm,v=1 v=1\nm,a=1,a=1 v=1",
        expect![[r#"
            refused line 1, column 6, Syntax: the line has no fields: after the table and its tags come a space and `name=value`
            refused line 2, column 6, Syntax: the tag's value is empty: leave the tag out instead
            refused line 3, column 3, Syntax: tag `a` has no `=value`
            refused line 4, column 7, Syntax: a field `name=value` must follow the comma
            refused line 5, column 5, BadValue: the field's value is empty: leave the field out instead
            refused line 6, column 8, Syntax: `b` follows a value: a comma, a space or the line's end must
            refused line 7, column 5, Syntax: the quoted text has no closing quote
            refused line 8, column 5, BadValue: `-1u` is unsigned and cannot have a sign
            refused line 9, column 7, BadTime: `2026-01-01` is not a time: an integer in the unit that the precision parameter says
            refused line 10, column 7, BadTime: time `99999999999999999999` does not fit 64 bits of nanoseconds: check the precision parameter
            refused line 11, column 9, Syntax: `1` follows the time, which ends the line
            refused line 12, column 5, NotFinite: `inf` is not a finite number that fits 64 bits: leave the field out instead
            refused line 13, column 1, BadName: table `_rejected` is refused: `_rejected` is reserved for refused rows
            refused line 14, column 3, BadName: tag `time` is refused: `time` is reserved for the row's time
            refused line 15, column 7, BadName: field `v` occurs twice
            refused line 16, column 7, BadName: `v` is a tag and a field of the same row
            refused line 17, column 7, BadName: tag `a` occurs twice
        "#]],
    );
}

#[test]
fn rows_without_a_time_stand_a_step_apart() {
    let step = |default_time_step_ns| {
        let options =
            LineOptions { default_time_ns: 100, default_time_step_ns, ..LineOptions::default() };
        parse(b"m v=1\nm v=2 5\nm v=3\n", &options).tables[0].time.clone()
    };
    assert_eq!(step(0), [100, 5, 100]);
    let apart = step(1);
    assert_eq!((apart[1], apart[2] - apart[0]), (5, 2));
}
