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
