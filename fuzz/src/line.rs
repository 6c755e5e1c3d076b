//! Line protocol. The first byte chooses precision and limits, the rest is a body.
//!
//! Properties: every row is in a batch or counted as refused; batches are consistent; what is
//! written back as line protocol reads back to as many rows, none of them refused.

use millrace_protocol::{
    batch::RowLimits,
    line::{LineOptions, Precision, parse_seeded, write_lines},
};

const PRECISIONS: [Precision; 7] = [
    Precision::Nanosecond,
    Precision::Auto,
    Precision::Microsecond,
    Precision::Millisecond,
    Precision::Second,
    Precision::Minute,
    Precision::Hour,
];

fn options(choice: u8) -> LineOptions {
    let small = RowLimits { line_bytes: 256, text_bytes: 32, tags: 3, fields: 4 };
    LineOptions {
        precision: PRECISIONS[usize::from(choice) % PRECISIONS.len()],
        default_time_ns: 1_700_000_000_000_000_000,
        default_time_step_ns: 1,
        limits: if choice & 0x80 == 0 { RowLimits::default() } else { small },
        refusals_max: if choice & 0x40 == 0 { 100 } else { 1 },
    }
}

/// The target.
pub fn run(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    let options = options(*choice);
    let parsed = parse_seeded(body, &options, u64::from(*choice));
    let mut kept = 0;
    let mut text = Vec::new();
    for table in &parsed.tables {
        table.check().expect("a parsed batch is consistent");
        assert!(table.rows() > 0, "no table without rows");
        kept += table.rows() as u64;
        write_lines(table, &mut text);
    }
    assert_eq!(kept + parsed.refused, parsed.lines, "every row is kept or refused");
    assert!(parsed.refusals.len() as u64 <= parsed.refused.min(options.refusals_max as u64));
    let again = parse_seeded(&text, &LineOptions::default(), 1);
    assert_eq!((again.refused, again.lines), (0, kept), "what was written reads back");
}

/// Bodies that each show something of the grammar.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let bodies: [(&str, u8, &str); 8] = [
        (
            "plain",
            0,
            "cpu,host=a,region=eu usage=1.5,idle=98i,up=t,note=\"fine\" 1700000000000000000\n",
        ),
        ("values", 1, "m a=1i,b=2u,c=-3e10,d=.5,e=1.,f=T,g=false,h=\"a\\\"b\\\\c\"\n"),
        ("escapes", 0, "a\\ b\\,c,t\\=ag=v\\ 1,u=x\\\\ f\\ ield=1 1\n"),
        ("lines", 3, "m v=1 1\n# comment\n\n  m v=2 2\r\nm v=oops 3\nm,t= v=1 4\n"),
        ("text", 0, "m s=\"two\nlines\" 1\nm s=\"open 2\nm v=1 3\n"),
        ("columns", 4, "m a=1 1\nm b=2 2\nm a=\"x\" 3\nn,a=1 a=2 4\n"),
        ("limits", 0x80, "m,a=1,b=2,c=3,d=4 v=1 1\nm a=1,b=2,c=3,d=4,e=5 2\n"),
        ("times", 6, "m v=1 -1\nm v=1 9223372036854775807\nm v=1 99999999999999999999\nm v=1\n"),
    ];
    let seed = |(name, choice, body): (&'static str, u8, &str)| {
        (name, [&[choice], body.as_bytes()].concat())
    };
    bodies.into_iter().map(seed).collect()
}
