//! How many bytes stretches of arrays hold.
//!
//! Owns: an estimate that is never below the values' own bytes. Never: copies values.

use datafusion::arrow::{
    array::{Array, AsArray},
    datatypes::{DataType, Int32Type, Int64Type},
};

/// Bytes of a value's own place (offset, view or key).
pub(super) const SLOT: u64 = 16;

/// Bytes of `rows` values from `start` on.
pub(crate) fn bytes(array: &dyn Array, start: usize, rows: usize) -> u64 {
    let slots = SLOT.saturating_mul(rows as u64);
    let values = match array.data_type() {
        DataType::Utf8 => offsets(array.as_string::<i32>().value_offsets(), start, rows).1,
        DataType::LargeUtf8 => offsets(array.as_string::<i64>().value_offsets(), start, rows).1,
        DataType::Binary => offsets(array.as_binary::<i32>().value_offsets(), start, rows).1,
        DataType::LargeBinary => offsets(array.as_binary::<i64>().value_offsets(), start, rows).1,
        DataType::Utf8View => {
            let views = array.as_string_view().views();
            // The low 32 bits of a view are the value's length.
            views.iter().skip(start).take(rows).map(|v| u64::from(*v as u32)).sum()
        }
        DataType::BinaryView => {
            let views = array.as_binary_view().views();
            views.iter().skip(start).take(rows).map(|v| u64::from(*v as u32)).sum()
        }
        DataType::FixedSizeBinary(width) => (*width).max(0) as u64 * rows as u64,
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (at, n) = offsets(list.value_offsets(), start, rows);
            bytes(list.values(), at, n as usize)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let (at, n) = offsets(list.value_offsets(), start, rows);
            bytes(list.values(), at, n as usize)
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let (at, n) = offsets(map.value_offsets(), start, rows);
            bytes(map.entries(), at, n as usize)
        }
        DataType::FixedSizeList(_, size) => {
            let size = (*size).max(0) as usize;
            bytes(array.as_fixed_size_list().values(), start * size, rows * size)
        }
        DataType::Struct(_) => {
            array.as_struct().columns().iter().map(|c| bytes(c, start, rows)).sum()
        }
        DataType::Dictionary(key, _) => match key.as_ref() {
            DataType::Int32 => dictionary::<Int32Type>(array, start, rows),
            DataType::Int64 => dictionary::<Int64Type>(array, start, rows),
            // Other keys do not occur in our tables; the whole dictionary bounds each value.
            _ => (array.get_buffer_memory_size() as u64).saturating_mul(rows as u64),
        },
        // Everything else has a fixed width of at most the slot.
        _ => 0,
    };
    slots.saturating_add(values)
}

/// Leaves of lists inside lists: elements that become text.
pub(super) fn leaves(array: &dyn Array, start: usize, rows: usize) -> u64 {
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (at, n) = offsets(list.value_offsets(), start, rows);
            leaves(list.values(), at, n as usize)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let (at, n) = offsets(list.value_offsets(), start, rows);
            leaves(list.values(), at, n as usize)
        }
        DataType::FixedSizeList(_, size) => {
            let size = (*size).max(0) as usize;
            leaves(array.as_fixed_size_list().values(), start * size, rows * size)
        }
        _ => rows as u64,
    }
}

/// First child and number of children of a stretch.
fn offsets<O: Copy + TryInto<u64>>(offsets: &[O], start: usize, rows: usize) -> (usize, u64) {
    let at = |i: usize| offsets.get(i).copied().and_then(|o| o.try_into().ok()).unwrap_or(0);
    let (from, to): (u64, u64) = (at(start), at(start + rows));
    (from as usize, to.saturating_sub(from))
}

fn dictionary<K: datafusion::arrow::datatypes::ArrowDictionaryKeyType>(
    array: &dyn Array,
    start: usize,
    rows: usize,
) -> u64 {
    let dictionary = array.as_dictionary::<K>();
    let values = dictionary.values();
    (start..start + rows)
        .filter_map(|row| dictionary.key(row))
        .map(|key| bytes(values.as_ref(), key, 1))
        .sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::{
        array::{
            ArrayRef, DictionaryArray, Int64Array, ListArray, NullArray, StringArray,
            StringViewArray, StructArray,
        },
        datatypes::Field,
    };

    use super::*;

    fn check(array: impl Array + 'static, start: usize, rows: usize, values: u64) {
        assert_eq!(bytes(&array, start, rows), SLOT * rows as u64 + values, "{array:?}");
    }

    #[test]
    fn text_counts_its_bytes_in_every_layout() {
        let text = ["a", "bcd", "a text that is longer than a view can hold", "é"];
        check(StringArray::from(text.to_vec()), 0, 4, 48);
        check(StringArray::from(text.to_vec()), 1, 2, 45);
        check(StringViewArray::from(text.to_vec()), 1, 3, 47);
        check(StringArray::from(text.to_vec()).slice(1, 2), 0, 1, 3);
        check(NullArray::new(5), 0, 5, 0);
        check(Int64Array::from(vec![1, 2]), 0, 2, 0);
    }

    #[test]
    fn nested_values_count_what_they_hold() {
        let words: DictionaryArray<Int32Type> = ["ab", "cde", "ab"].into_iter().collect();
        check(words, 0, 3, 3 * SLOT + 7);
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![
            Some(vec![Some(1), Some(2), Some(3)]),
            None,
            Some(vec![Some(4)]),
        ]);
        check(lists.clone(), 0, 3, 4 * SLOT);
        check(lists.clone(), 2, 1, SLOT);
        assert_eq!(leaves(&lists, 0, 1), 3);
        let column: ArrayRef = Arc::new(StringArray::from(vec!["abc", "d"]));
        let field = Arc::new(Field::new("a", DataType::Utf8, true));
        check(StructArray::from(vec![(field, column)]), 0, 2, 2 * SLOT + 4);
    }
}
