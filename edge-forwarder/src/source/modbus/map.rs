//! From registers to fields: what to read at once, and what the words mean.
//!
//! Owns: registers as they stand in the configuration, their check, batching, decoding, scaling.
//! Where a value goes is the mapping language's.
//! Never: reads an address that nobody asked for, because devices answer those with an exception;
//! makes a number of what is none (NaN is left out).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::mapping::value::Value;

/// Words and bits that one request may read, by the protocol.
const WORDS_MAX: u16 = 125;
const BITS_MAX: u16 = 2_000;
/// Fields of one device: a bound for memory and for the length of a row.
const FIELDS_MAX: usize = 4_096;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Holding registers (function 3).
    Holding,
    /// Input registers (function 4).
    Input,
    /// Coils (function 1).
    Coil,
    /// Discrete inputs (function 2).
    Discrete,
}

impl Area {
    /// Whether it holds bits, not words.
    pub fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::Discrete)
    }

    /// As the configuration says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holding => "holding",
            Self::Input => "input",
            Self::Coil => "coil",
            Self::Discrete => "discrete",
        }
    }
}

/// What the words mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One bit, of a coil or a discrete input.
    Bool,
    /// 16 bits without sign.
    U16,
    /// 16 bits with sign.
    I16,
    /// 32 bits without sign.
    U32,
    /// 32 bits with sign.
    I32,
    /// 32 bits, floating.
    F32,
    /// 64 bits without sign.
    U64,
    /// 64 bits with sign.
    I64,
    /// 64 bits, floating.
    F64,
}

impl Kind {
    /// Registers (or bits) that one value takes.
    fn len(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
        }
    }
}

/// Which word of a value comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Words {
    /// The most significant.
    #[default]
    Big,
    /// The least significant.
    Little,
}

fn one() -> f64 {
    1.0
}

/// One value of the device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The field, and the item's path for rules.
    pub field: String,
    /// Where.
    pub area: Area,
    /// The first register, from 0 as on the wire.
    pub address: u16,
    /// What.
    pub kind: Kind,
    /// Word order of values of more than one word.
    #[serde(default)]
    pub words: Words,
    /// The value is multiplied by this; other than 1 makes it a float.
    #[serde(default = "one")]
    pub scale: f64,
    /// Then this is added; other than 0 makes it a float.
    #[serde(default)]
    pub offset: f64,
    /// The unit, for people.
    #[serde(default)]
    pub unit: Option<String>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Where.
    pub area: Area,
    /// The first register.
    pub address: u16,
    /// How many.
    pub count: u16,
}

impl std::fmt::Display for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} to {}", self.area.name(), self.address, self.address + (self.count - 1))
    }
}

/// What is wrong with a mapping, each with the field's name.
pub fn problems(registers: &[Register]) -> Vec<String> {
    let mut wrong = Vec::new();
    if registers.is_empty() || registers.len() > FIELDS_MAX {
        wrong.push(format!("give 1 to {FIELDS_MAX} registers, not {}", registers.len()));
    }
    let mut names = std::collections::BTreeSet::new();
    for r in registers {
        if r.field.is_empty() || r.field.len() > 128 || r.field.chars().any(char::is_control) {
            wrong.push(format!("field `{}`: use 1 to 128 bytes", r.field.escape_debug()));
        }
        if !names.insert(&r.field) {
            wrong.push(format!("field `{}` is given twice", r.field));
        }
        if r.area.is_bits() != (r.kind == Kind::Bool) {
            wrong.push(format!("field `{}`: kind bool belongs to coil and discrete", r.field));
        }
        if r.address.checked_add(r.kind.len() - 1).is_none() {
            wrong.push(format!("field `{}` ends behind register 65535", r.field));
        }
        if !(r.scale.is_finite() && r.offset.is_finite()) {
            wrong.push(format!("field `{}`: scale and offset must be finite", r.field));
        }
    }
    wrong
}

/// The fewest requests for these registers that read nothing else.
pub fn plan(registers: &[Register]) -> Vec<Read> {
    let mut spans: Vec<(Area, u16, u16)> =
        registers.iter().map(|r| (r.area, r.address, r.kind.len())).collect();
    spans.sort_unstable();
    let mut reads: Vec<Read> = Vec::new();
    for (area, address, len) in spans {
        let most = if area.is_bits() { BITS_MAX } else { WORDS_MAX };
        // Wider than a register's number: the last register is 65535.
        let end = u32::from(address) + u32::from(len);
        if let Some(last) = reads.last_mut()
            && last.area == area
            && u32::from(address) <= u32::from(last.address) + u32::from(last.count)
            && let Ok(count) = u16::try_from(end - u32::from(last.address))
            && count.max(last.count) <= most
        {
            last.count = last.count.max(count);
            continue;
        }
        reads.push(Read { area, address, count: len });
    }
    reads
}

/// What was read: registers by area and address; a bit is 0 or 1.
#[derive(Debug, Default)]
pub struct Image(BTreeMap<(Area, u16), u16>);

impl Image {
    /// Takes an answer in. `words` may be shorter than asked for: the rest is missing.
    pub fn put(&mut self, read: &Read, words: impl IntoIterator<Item = u16>) {
        let addresses = read.address..=u16::MAX;
        let known = addresses.zip(words).take(usize::from(read.count));
        self.0.extend(known.map(|(address, word)| ((read.area, address), word)));
    }

    fn bits(&self, r: &Register) -> Option<u64> {
        let mut words = Vec::with_capacity(4);
        for n in 0..r.kind.len() {
            words.push(*self.0.get(&(r.area, r.address.checked_add(n)?))?);
        }
        if r.words == Words::Little {
            words.reverse();
        }
        Some(words.into_iter().fold(0, |bits, word| bits << 16 | u64::from(word)))
    }

    /// The value, scaled; `None` if it was not read or is no number.
    pub fn value(&self, r: &Register) -> Option<Value<'static>> {
        let value = self.plain(r)?;
        if r.kind == Kind::Bool || (r.scale == 1.0 && r.offset == 0.0) {
            return Some(value);
        }
        match value.scaled(r.scale, r.offset) {
            Ok(Value::F64(v)) if v.is_finite() => Some(Value::F64(v)),
            _ => None,
        }
    }

    fn plain(&self, r: &Register) -> Option<Value<'static>> {
        let bits = self.bits(r)?;
        // The low bits are the value; `as` takes exactly them.
        #[expect(clippy::cast_possible_truncation, reason = "the value is the low bits")]
        #[expect(clippy::cast_possible_wrap, reason = "two's complement is what the wire says")]
        let (low16, low32, all) = (bits as u16 as i16, bits as u32 as i32, bits as i64);
        let float = |value: f64| value.is_finite().then_some(Value::F64(value));
        match r.kind {
            Kind::Bool => Some(Value::Bool(bits == 1)),
            Kind::I16 => Some(Value::I64(i64::from(low16))),
            Kind::I32 => Some(Value::I64(i64::from(low32))),
            Kind::I64 => Some(Value::I64(all)),
            Kind::U16 | Kind::U32 | Kind::U64 => Some(Value::U64(bits)),
            Kind::F32 => float(f64::from(f32::from_bits(low32.cast_unsigned()))),
            Kind::F64 => float(f64::from_bits(bits)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(field: &str, address: u16, kind: Kind) -> Register {
        let area = if kind == Kind::Bool { Area::Coil } else { Area::Holding };
        let (words, unit) = (Words::Big, None);
        Register { field: field.into(), area, address, kind, words, scale: 1.0, offset: 0.0, unit }
    }

    #[test]
    fn neighbours_are_read_at_once_and_nothing_that_nobody_asked_for() {
        let mut registers: Vec<Register> =
            (0..200).map(|n| register(&format!("a{n}"), n, Kind::U16)).collect();
        registers.push(register("far", 65_532, Kind::U64));
        registers.push(register("twice", 3, Kind::F32));
        registers.push(register("bit", 7, Kind::Bool));
        let reads = plan(&registers);
        let shown: Vec<String> = reads.iter().map(ToString::to_string).collect();
        let expected =
            ["holding 0 to 124", "holding 125 to 199", "holding 65532 to 65535", "coil 7 to 7"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn words_become_values_of_every_kind_in_both_orders() {
        let check = |kind, words: &[u16], expected: Option<Value<'static>>| {
            let mut r = register("v", 10, kind);
            let read = Read { area: r.area, address: 10, count: 4 };
            for order in [Words::Big, Words::Little] {
                r.words = order;
                let mut words = words.to_vec();
                if order == Words::Little {
                    words.reverse();
                }
                let mut image = Image::default();
                image.put(&read, words);
                assert_eq!(image.value(&r), expected, "{kind:?} {order:?}");
            }
        };
        check(Kind::Bool, &[1], Some(Value::Bool(true)));
        check(Kind::U16, &[0xffff], Some(Value::U64(65_535)));
        check(Kind::I16, &[0xffff], Some(Value::I64(-1)));
        check(Kind::U32, &[1, 2], Some(Value::U64(65_538)));
        check(Kind::I32, &[0xffff, 0xfffe], Some(Value::I64(-2)));
        check(Kind::F32, &[0x4148, 0], Some(Value::F64(12.5)));
        check(Kind::F32, &[0x7fc0, 0], None);
        check(Kind::U64, &[0xffff; 4], Some(Value::U64(u64::MAX)));
        check(Kind::I64, &[0xffff; 4], Some(Value::I64(-1)));
        check(Kind::F64, &[0xbff8, 0, 0, 0], Some(Value::F64(-1.5)));
        check(Kind::U32, &[1], None);
    }

    #[test]
    fn a_scaled_value_is_a_float_and_what_was_not_read_is_none() {
        let mut temperature = register("te mp", 0, Kind::I16);
        (temperature.scale, temperature.offset) = (0.1, -40.0);
        let mut image = Image::default();
        image.put(&Read { area: Area::Holding, address: 0, count: 1 }, [655]);
        assert_eq!(image.value(&temperature), Some(Value::F64(25.5)));
        assert_eq!(image.value(&register("gone", 5, Kind::U16)), None);
        temperature.scale = f64::MAX;
        assert_eq!(image.value(&temperature), None, "no infinity");
    }

    #[test]
    fn a_mapping_that_cannot_be_is_refused_with_the_name_of_the_field() {
        let mut bad = vec![register("a", 65_535, Kind::U32), register("a", 0, Kind::U16)];
        bad[1].area = Area::Coil;
        bad[1].scale = f64::NAN;
        let said = problems(&bad).join("\n");
        for expected in ["ends behind", "given twice", "bool belongs", "must be finite"] {
            assert!(said.contains(expected), "{said}");
        }
        assert!(problems(&[register("a", 0, Kind::F64)]).is_empty());
    }
}
