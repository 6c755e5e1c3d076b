//! What the encodings may never do: change a bit. And what they must do: be small.

use arrow::{
    array::{Array, AsArray, UInt64Array},
    datatypes::{DataType, Field, Float64Type, Schema, TimestampNanosecondType},
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowWriter, PARQUET_FIELD_ID_META_KEY, arrow_reader::ParquetRecordBatchReaderBuilder,
    },
    basic::{LogicalType, Type as PhysicalType},
    file::reader::{FileReader, SerializedFileReader},
};

use super::*;
use crate::scan::{arrow_type, time_type};

const PROFILES: [FileProfile; 2] = [FileProfile::Hot, FileProfile::Merged];
const MS: i64 = 1_000_000;

/// A run of `series` series of equal length, with fields 4, 5, …
fn run_of(time: Vec<i64>, series: usize, fields: Vec<ArrayRef>) -> Run {
    let rows = time.len() / series;
    let spans = (0..series)
        .map(|n| SeriesSpan {
            sid: SeriesId(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(n as u64 + 1)),
            start: (n * rows) as u32,
            rows: rows as u32,
            t_min: time[n * rows..(n + 1) * rows].iter().copied().min().unwrap(),
            t_max: time[n * rows..(n + 1) * rows].iter().copied().max().unwrap(),
        })
        .collect();
    Run::new(time, (4..4 + fields.len() as u32).collect(), fields, spans).unwrap()
}

fn types(run: &Run) -> Vec<(u32, FieldType)> {
    let ty = |column: &ArrayRef| match column.data_type() {
        DataType::Float64 => FieldType::F64,
        DataType::Int64 => FieldType::I64,
        DataType::UInt64 => FieldType::U64,
        DataType::Boolean => FieldType::Bool,
        _ => FieldType::Utf8,
    };
    run.field_ids.iter().copied().zip(run.batch.columns().iter().skip(1).map(ty)).collect()
}

fn schema_of(run: &Run) -> TableSchema {
    let field = |(id, ty): (u32, FieldType)| FieldDef { id, name: format!("f{id}"), ty };
    let fields = types(run).into_iter().map(field).collect();
    TableSchema { table_id: 1, name: "t".into(), tags: Vec::new(), fields, version: 1 }
}

fn written(run: &Run, profile: FileProfile) -> ColumnFileParts {
    write_column_file(run, &schema_of(run), profile).unwrap()
}

/// The rows of `ranges`, by our reader.
fn read(parts: &ColumnFileParts, run: &Run, ranges: &[std::ops::Range<u32>]) -> RecordBatch {
    let file = stored(&parts.parquet, &parts.directory).open().unwrap();
    block_on(file.read_whole(ranges, &types(run))).unwrap()
}

/// Bit for bit: arrow takes 0.0 and -0.0 for different and equal NaNs for equal, and this must
/// not depend on that.
fn same(found: &RecordBatch, expected: &RecordBatch) {
    assert_eq!(found.num_rows(), expected.num_rows());
    for (found, expected) in found.columns().iter().zip(expected.columns()) {
        let (Some(a), Some(b)) =
            (found.as_primitive_opt::<Float64Type>(), expected.as_primitive_opt::<Float64Type>())
        else {
            assert_eq!(found, expected);
            continue;
        };
        for (row, (a, b)) in a.iter().zip(b).enumerate() {
            assert_eq!(a.map(f64::to_bits), b.map(f64::to_bits), "row {row}: {a:?} for {b:?}");
        }
    }
}

/// Comes back bit for bit, whole and in parts, under every profile.
fn comes_back(run: &Run) {
    let rows = run.rows() as u32;
    for profile in PROFILES {
        let parts = written(run, profile);
        let (third, end) = (rows / 3, rows - rows / 4);
        same(&read(&parts, run, std::slice::from_ref(&(0..rows))), &run.batch);
        if third + 1 >= end {
            continue;
        }
        let found = read(&parts, run, &[third..third + 1, end - 1..end]);
        let ones = [third, end - 1].map(|at| run.batch.slice(at as usize, 1));
        same(&found, &concat_batches(&ones[0].schema(), &ones).unwrap());
    }
}

fn times(rows: usize) -> Vec<i64> {
    (0..rows as i64).map(|n| 1_767_225_600_000 * MS + n * 1000 * MS).collect()
}

fn floats(values: Vec<Option<f64>>) -> ArrayRef {
    Arc::new(Float64Array::from(values))
}

/// Physical and logical type of field 4.
fn stored_type(parts: &ColumnFileParts) -> (PhysicalType, Option<i32>) {
    let reader = SerializedFileReader::new(Bytes::copy_from_slice(&parts.parquet)).unwrap();
    let column = reader.metadata().row_group(0).column(2).column_descr_ptr();
    let scale = match column.logical_type_ref() {
        Some(LogicalType::Decimal(decimal)) => Some(decimal.scale),
        _ => None,
    };
    (column.physical_type(), scale)
}

fn special() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(-0.0),
        Just(f64::NAN),
        Just(f64::from_bits(0x7ff8_0000_dead_beef)),
        Just(f64::from_bits(0xfff0_0000_0000_0001)),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(5e-324),
        Just(f64::MAX),
        Just(9_007_199_254_740_993.0),
        Just(2_251_799_813_685_249.0),
        Just(0.1 + 0.2),
        any::<f64>(),
    ]
}

/// A column of decimals of up to 15 digits, with nulls, and in half of the cases with values that
/// are none.
fn float_column() -> impl Strategy<Value = Vec<Option<f64>>> {
    let decimals = (0u32..=15, 1i64..=1_000_000_000_000_000).prop_flat_map(|(digits, size)| {
        (-size..=size).prop_map(move |i| i as f64 / 10f64.powi(digits as i32)).boxed()
    });
    let small = (0u32..=15).prop_flat_map(|digits| {
        let value = (-999i64..=999).prop_map(move |i| i as f64 / 10f64.powi(digits as i32));
        proptest::collection::vec(proptest::option::weighted(0.9, value), 1..700)
    });
    let wide = proptest::collection::vec(proptest::option::weighted(0.9, decimals), 1..700);
    let specials = proptest::collection::vec((any::<prop::sample::Index>(), special()), 1..4);
    (prop_oneof![small, wide], proptest::option::of(specials)).prop_map(|(mut all, specials)| {
        for (at, value) in specials.into_iter().flatten() {
            let at = at.index(all.len());
            all[at] = Some(value);
        }
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn floats_come_back_bit_for_bit(column in float_column()) {
        comes_back(&run_of(times(column.len()), 1, vec![floats(column)]));
    }

    #[test]
    fn whole_numbers_texts_and_booleans_come_back(
        seed in any::<u64>(),
        rows in 1usize..9_000,
        spread in 0u32..=63,
        missing in 0u64..=10,
        distinct in 1u64..=40_000,
    ) {
        let mut random = Walk(seed);
        let mut here = |_| random.below(10) >= missing;
        let there: Vec<bool> = (0..rows).map(&mut here).collect();
        let mut random = Walk(!seed);
        let mut values: Vec<u64> = (0..rows).map(|_| random.next() >> (63 - spread)).collect();
        if seed % 3 == 0 {
            values.iter_mut().for_each(|v| *v %= distinct);
        }
        if seed % 5 == 0 {
            // Long runs.
            values = (0..rows).map(|row| values[row / 100]).collect();
        }
        let pick = |row: usize| there[row].then(|| values[row]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter((0..rows).map(pick))),
            Arc::new(Int64Array::from_iter((0..rows).map(|row| pick(row).map(|v| v as i64)))),
            Arc::new(StringArray::from_iter((0..rows).map(|row| pick(row).map(|v| v.to_string())))),
            Arc::new(BooleanArray::from_iter((0..rows).map(|row| pick(row).map(|v| v % 3 == 0)))),
            floats((0..rows).map(|row| pick(row).map(f64::from_bits)).collect()),
        ];
        comes_back(&run_of(times(rows), 1, columns));
    }
}

#[test]
fn one_value_that_is_no_decimal_behind_twenty_thousand_that_are_keeps_its_bits() {
    let looks: Vec<Option<f64>> = (0..20_000).map(|n| Some(f64::from(n) / 100.0)).collect();
    let decimals = run_of(times(looks.len()), 1, vec![floats(looks.clone())]);
    let parts = written(&decimals, FileProfile::Hot);
    assert_eq!(stored_type(&parts), (PhysicalType::INT64, Some(2)), "the sample looks decimal");
    let nan = f64::from_bits(0x7ff8_0000_dead_beef);
    for odd in [-0.0, nan, f64::INFINITY, 5e-324, 1e300, 0.1 + 0.2, 9_007_199_254_740_994.0] {
        for at in [0, 9_999, 19_999] {
            let mut column = looks.clone();
            column[at] = Some(odd);
            let run = run_of(times(column.len()), 1, vec![floats(column)]);
            let parts = written(&run, FileProfile::Merged);
            let all = 0..20_000;
            same(&read(&parts, &run, std::slice::from_ref(&all)), &run.batch);
            assert_eq!(stored_type(&parts), (PhysicalType::DOUBLE, None), "{odd} at {at}");
        }
    }
}

#[test]
fn one_value_of_more_digits_raises_the_scale_of_the_file() {
    let mut column: Vec<Option<f64>> = (0..20_000).map(|n| Some(f64::from(n) / 100.0)).collect();
    column[19_990] = Some(1.234_567);
    let run = run_of(times(column.len()), 1, vec![floats(column)]);
    comes_back(&run);
    let parts = written(&run, FileProfile::Hot);
    assert_eq!(stored_type(&parts), (PhysicalType::INT64, Some(6)));
}

/// What a reader that knows nothing of us sees: the same decimals, the same instants.
#[test]
fn a_stock_reader_sees_the_same_decimals_and_times() {
    let column: Vec<Option<f64>> = (0..9_000)
        .map(|n| (n % 7 != 0).then(|| f64::from(n * 37 % 10_007 - 5_000) / 1000.0))
        .collect();
    for step in [1, 1_000, MS] {
        let time: Vec<i64> = (0..9_000).map(|n| n * 250 * step).collect();
        let run = run_of(time, 3, vec![floats(column.clone())]);
        for profile in PROFILES {
            let parts = written(&run, profile);
            let bytes = Bytes::copy_from_slice(&parts.parquet);
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
            let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
            let batch = concat_batches(&batches[0].schema(), &batches).unwrap();
            let sids = batch.column(0).as_primitive::<arrow::datatypes::UInt64Type>();
            assert_eq!(sids.value(3_000), run.series[1].sid.0);
            let found = arrow::compute::cast(batch.column(1), &time_type()).unwrap();
            assert_eq!(&found, run.batch.column(0));
            let decimals = batch.column(2).as_primitive::<arrow::datatypes::Decimal128Type>();
            for (row, value) in column.iter().enumerate() {
                let text = decimals.is_valid(row).then(|| decimals.value_as_string(row));
                let parsed = text.map(|t| t.parse::<f64>().unwrap().to_bits());
                assert_eq!(parsed, value.map(f64::to_bits), "row {row}");
            }
        }
    }
}

#[test]
fn times_to_the_nanosecond_and_before_the_epoch_come_back() {
    for step in [1, 1_000, MS] {
        let time: Vec<i64> = (-5_000..5_000).map(|n| n * step + (n % 2) * step).collect();
        let run = run_of(time, 1, vec![floats(vec![Some(1.0); 10_000])]);
        comes_back(&run);
    }
}

/// What was written before: floats as they are, time in ns, the arrow schema in the footer.
#[test]
fn files_of_the_first_writer_are_read_as_before() {
    let column: Vec<Option<f64>> = (0..5_000).map(|n| Some(f64::from(n) / 8.0)).collect();
    let run = run_of(times(5_000), 1, vec![floats(column)]);
    let field = |name: &str, ty, null, id: &str| {
        Field::new(name, ty, null)
            .with_metadata([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_owned())].into())
    };
    let schema = Arc::new(Schema::new(vec![
        field("__sid", DataType::UInt64, false, "1"),
        field("time", time_type(), false, "2"),
        field("f4", arrow_type(FieldType::F64), true, "4"),
    ]));
    let sid: ArrayRef = Arc::new(UInt64Array::from(vec![run.series[0].sid.0; 5_000]));
    let columns = vec![sid, Arc::clone(run.batch.column(0)), Arc::clone(run.batch.column(1))];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    let mut parts = written(&run, FileProfile::Hot);
    parts.parquet = writer.into_inner().unwrap();
    let (first, second) = (10..20, 4_000..4_001);
    let found = read(&parts, &run, &[first, second]);
    let time = found.column(0).as_primitive::<TimestampNanosecondType>();
    assert_eq!(time.value(10), times(5_000)[4_000]);
    assert_eq!(found.column(1).as_primitive::<Float64Type>().value(10), 500.0);
}

#[test]
fn a_file_of_two_row_groups_comes_back() {
    let rows = (1 << 20) + 20_000;
    let column: Vec<Option<f64>> =
        (0..rows).map(|n| (n % 5 != 0).then(|| (n % 1000) as f64 / 10.0)).collect();
    comes_back(&run_of(times(rows), 4, vec![floats(column)]));
}

/// SplitMix64, with the steps of a walk.
struct Walk(u64);

impl Walk {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let u = self.unit().max(f64::MIN_POSITIVE);
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// The `shopfloor` workload's rows of two hours: eleven gauges of three decimals that wander about
/// a set point, a tenth of them missing, a counter, a state, a lot; 1 Hz with 50 ms of jitter.
fn shop_floor(machines: usize) -> (Run, usize) {
    const BEHAVIOUR: [(f64, f64); 11] = [
        (62_000.0, 40.0),
        (71_000.0, 30.0),
        (24_000.0, 15.0),
        (5_200.0, 8.0),
        (8_000_000.0, 2_500.0),
        (1_200_000.0, 900.0),
        (0.0, 4_000.0),
        (0.0, 4_000.0),
        (150_000.0, 1_500.0),
        (1_800.0, 60.0),
        (11_500.0, 90.0),
    ];
    let mut random = Walk(11);
    let mut time = Vec::new();
    let mut gauges: Vec<Vec<Option<f64>>> = vec![Vec::new(); 11];
    let (mut parts, mut states, mut lots) = (Vec::new(), Vec::new(), Vec::new());
    let mut values = 0;
    for machine in 0..machines {
        let mut now = BEHAVIOUR.map(|(set, step)| set + random.normal() * step * 10.0);
        let (mut made, mut state, mut lot) = (0, "running", 0);
        for second in 0..7200 {
            time.push((1_800_000_000 + second) * 1000 * MS + random.below(50_000) as i64 * 1000);
            for ((gauge, column), (set, step)) in now.iter_mut().zip(&mut gauges).zip(BEHAVIOUR) {
                *gauge += random.normal() * step + (set - *gauge) * 0.01;
                let there = random.below(10) > 0;
                values += usize::from(there);
                column.push(there.then(|| gauge.round() / 1000.0 + 0.0));
            }
            if random.below(120) == 0 {
                state = ["running", "running", "idle", "setup", "alarm"][random.below(5) as usize];
            }
            made += i64::from(state == "running" && random.below(30) == 0);
            lot += u64::from(random.below(400) == 0);
            parts.push(made);
            states.push(state);
            lots.push(format!("L{machine:04}-{lot:06}"));
        }
    }
    let mut columns: Vec<ArrayRef> = gauges.into_iter().map(floats).collect();
    columns.push(Arc::new(Int64Array::from(parts)));
    columns.push(Arc::new(StringArray::from(states)));
    columns.push(Arc::new(StringArray::from(lots)));
    (run_of(time, machines, columns), values)
}

#[test]
fn a_shop_floor_takes_at_most_two_bytes_a_float_value_times_and_texts_included() {
    let (run, values) = shop_floor(6);
    for profile in PROFILES {
        let parts = written(&run, profile);
        let bytes = parts.parquet.len() + parts.directory.len();
        let each = bytes as f64 / values as f64;
        println!("{profile:?}: {each:.3} bytes a value");
        assert!(each <= 1.85, "{profile:?}: {each:.3} bytes a value");
    }
    comes_back(&run);
}

#[test]
fn ten_walks_of_small_steps_take_less_than_four_bytes_a_row() {
    let mut random = Walk(7);
    let (hosts, rows) = (50, 720);
    let mut columns: Vec<Vec<i64>> = vec![Vec::new(); 10];
    for column in &mut columns {
        for _ in 0..hosts {
            let mut walk = random.unit() * 100.0;
            for _ in 0..rows {
                walk = (walk + random.normal()).clamp(0.0, 100.0);
                column.push(walk as i64);
            }
        }
    }
    let time: Vec<i64> = (0..hosts).flat_map(|_| (0..rows).map(|n| n * 10_000 * MS)).collect();
    let columns = columns.into_iter().map(|c| Arc::new(Int64Array::from(c)) as ArrayRef).collect();
    let run = run_of(time, hosts as usize, columns);
    for profile in PROFILES {
        let parts = written(&run, profile);
        let each = (parts.parquet.len() + parts.directory.len()) as f64 / run.rows() as f64;
        println!("{profile:?}: {each:.3} bytes a row");
        assert!(each <= 3.6, "{profile:?}: {each:.3} bytes a row");
    }
    comes_back(&run);
}
