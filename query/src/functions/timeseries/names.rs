//! Names of states, each kept once.
//!
//! Owns: the number of a name and the order of names. A state is read in every row but there are
//! few different ones; kept once, a long name in a million rows costs as much as in one.
//! Never: hashes; names come from outside and could be chosen to collide.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    arrow::array::StringArray,
    error::{DataFusionError, Result},
};

/// Bytes of one name besides its text: two entries, its rank and its sum.
const NAME_BYTES: usize = 128;

/// See the module head.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Vec<Arc<str>>,
    numbers: BTreeMap<Arc<str>, u32>,
    text_bytes: usize,
    /// The name that was asked for last: states repeat.
    last: Option<u32>,
}

impl Names {
    /// The number of a name.
    pub(super) fn number(&mut self, name: &str) -> Result<u32> {
        if let Some(last) = self.last
            && self.name(last) == name
        {
            return Ok(last);
        }
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => self.add(name)?,
        };
        self.last = Some(number);
        Ok(number)
    }

    fn add(&mut self, name: &str) -> Result<u32> {
        let full = || DataFusionError::ResourcesExhausted("too many names of states".to_owned());
        // A column of text has no more than 2 GiB.
        let text_bytes = self.text_bytes + name.len();
        i32::try_from(text_bytes).map_err(|_| full())?;
        let number = u32::try_from(self.names.len()).map_err(|_| full())?;
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        self.text_bytes = text_bytes;
        Ok(number)
    }

    pub(super) fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", AsRef::as_ref)
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The place of each name in the order of names, by number.
    pub(super) fn ranks(&self) -> Vec<u32> {
        let mut ranks = vec![0; self.names.len()];
        for (rank, number) in (0u32..).zip(self.numbers.values()) {
            if let Some(place) = ranks.get_mut(*number as usize) {
                *place = rank;
            }
        }
        ranks
    }

    /// All names, by number.
    pub(super) fn column(&self) -> StringArray {
        StringArray::from_iter_values(self.names.iter())
    }

    /// Bytes kept, and bytes of the copy in a partial state.
    pub(super) fn bytes(&self) -> usize {
        self.names.capacity() * NAME_BYTES + 2 * self.text_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number_and_its_place_in_the_order() {
        let mut names = Names::default();
        let numbers: Vec<u32> =
            ["run", "idle", "run", "run", "stop", "idle"].map(|n| names.number(n).unwrap()).into();
        assert_eq!(numbers, [0, 1, 0, 0, 2, 1]);
        assert_eq!(names.ranks(), [1, 0, 2]);
        assert_eq!((names.name(2), names.len()), ("stop", 3));
    }

    #[test]
    fn a_long_name_is_counted_once() {
        let mut names = Names::default();
        let long = "x".repeat(1 << 20);
        (0..100).for_each(|_| assert_eq!(names.number(&long).unwrap(), 0));
        assert!(names.bytes() >= 2 << 20 && names.bytes() < 3 << 20, "{}", names.bytes());
    }
}
