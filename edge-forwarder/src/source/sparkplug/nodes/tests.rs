//! Messages of nodes, lost and strange ones among them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::proto::{Held, PropertySet, PropertyValue},
    *,
};
use crate::mapping::{Ground, Mapping};

pub(in crate::source::sparkplug) fn mapping() -> Mapping {
    let tags = ["group", "node", "device"].map(|t| (t.to_owned(), format!("{{{t}}}")));
    let tags: BTreeMap<String, String> = tags.into_iter().collect();
    let ground = Ground {
        table: "plant",
        field: "{field}",
        tags: &tags,
        attributes: &ATTRIBUTES,
        pointers: false,
        floats: false,
    };
    Mapping::resolve(&[], &ground).unwrap()
}

fn metric(name: Option<&str>, alias: Option<u64>, value: i32) -> Metric {
    Metric {
        name: name.map(str::to_owned),
        alias,
        datatype: name.map(|_| 3),
        value: Some(Held::Int(value.cast_unsigned())),
        ..Metric::default()
    }
}

fn payload(seq: u64, metrics: &[Metric]) -> Vec<u8> {
    let metrics = metrics.iter().map(|m| m.encode_to_vec().into()).collect();
    Payload { timestamp: Some(7), metrics, seq: Some(seq), uuid: None }.encode_to_vec()
}

fn births(bd: u64) -> Vec<u8> {
    let mut bd_seq = metric(Some("bdSeq"), None, 0);
    (bd_seq.datatype, bd_seq.value) = (Some(8), Some(Held::Long(bd)));
    let mut temp = metric(Some("oven/temp"), Some(1), 20);
    temp.properties = Some(PropertySet {
        keys: vec!["engUnit".to_owned()],
        values: vec![PropertyValue { string: Some("C".to_owned()) }],
    });
    payload(0, &[bd_seq, temp])
}

const AT: Moment = Moment { now_ns: 9_000_000, monotonic: Duration::from_secs(100) };

#[test]
fn aliases_of_births_name_the_values_of_data() {
    let mapping = mapping();
    let mut nodes = Nodes::new("sparkplug-t", &mapping);
    let out = nodes.take("spBv1.0/g/NBIRTH/n", &births(3), AT);
    let expected = [
        "sparkplug_presence,group=g,node=n,device=- online=true 9000000\n",
        "edge_units,field=oven_temp,table=plant unit=\"C\" 9000000\n",
        "plant,device=-,group=g,node=n oven_temp=20i 7000000\n",
    ];
    assert_eq!(out.lines, expected);
    let out =
        nodes.take("spBv1.0/g/DBIRTH/n/d", &payload(1, &[metric(Some("x"), Some(2), -5)]), AT);
    assert_eq!(out.lines[1], "plant,device=d,group=g,node=n x=-5i 7000000\n");
    let out = nodes.take("spBv1.0/g/NDATA/n", &payload(2, &[metric(None, Some(1), 21)]), AT);
    assert_eq!(out.lines, ["plant,device=-,group=g,node=n oven_temp=21i 7000000\n"]);
    let out = nodes.take("spBv1.0/g/DDATA/n/d", &payload(3, &[metric(None, Some(2), 6)]), AT);
    assert_eq!(out.lines, ["plant,device=d,group=g,node=n x=6i 7000000\n"]);
    assert!(out.commands.is_empty() && out.gaps.is_empty() && out.rejected == 0);
    // An alias belongs to the device whose birth named it.
    let out = nodes.take("spBv1.0/g/DDATA/n/d", &payload(4, &[metric(None, Some(1), 6)]), AT);
    assert_eq!((out.lines.len(), out.rejected), (0, 1));
}

#[test]
fn e8_lost_messages_are_a_gap_and_a_rebirth_is_asked_for_once_in_a_while() {
    let mapping = mapping();
    for (lost, seen) in [(1u64, true), (255, true), (256, false)] {
        let mut nodes = Nodes::new("sparkplug-t", &mapping);
        nodes.take("spBv1.0/g/NBIRTH/n", &births(3), AT);
        let data = |seq: u64| payload(seq % 256, &[metric(None, Some(1), 21)]);
        let out = nodes.take("spBv1.0/g/NDATA/n", &data(1 + lost), AT);
        assert_eq!(out.gaps.len(), usize::from(seen), "{lost}");
        assert_eq!(out.commands.len(), usize::from(seen), "{lost}");
        if !seen {
            // A multiple of 256 cannot be seen; docs/edge.md says so.
            assert_eq!(out.lines.len(), 1);
            continue;
        }
        assert!(out.gaps[0].detail.ends_with(&format!("{lost} are missing")), "{:?}", out.gaps);
        assert_eq!(out.commands[0].topic, "spBv1.0/g/NCMD/n");
        assert_eq!((out.lines.len(), out.rejected), (0, 1), "its names are not sure");
        let out = nodes.take("spBv1.0/g/NDATA/n", &data(2 + lost), AT);
        assert_eq!((out.commands.len(), out.gaps.len(), out.rejected), (0, 0, 1));
        let later = Moment { monotonic: AT.monotonic + ASK_EVERY, ..AT };
        assert_eq!(nodes.take("spBv1.0/g/NDATA/n", &data(3 + lost), later).commands.len(), 1);
        let out = nodes.take("spBv1.0/g/NBIRTH/n", &births(3), later);
        assert!(out.gaps.is_empty());
        assert_eq!(nodes.take("spBv1.0/g/NDATA/n", &data(1), later).lines.len(), 1);
    }
}

#[test]
fn e8_deaths_and_births_without_a_death_are_gaps() {
    let mapping = mapping();
    let mut nodes = Nodes::new("sparkplug-t", &mapping);
    nodes.take("spBv1.0/g/NBIRTH/n", &births(3), AT);
    let stale = nodes.take("spBv1.0/g/NDEATH/n", &births(2), AT);
    assert!(stale.gaps.is_empty() && stale.lines.is_empty(), "the will of an earlier connection");
    let death = nodes.take("spBv1.0/g/NDEATH/n", &births(3), AT);
    assert_eq!(death.gaps[0].cause, Cause::SourceDown);
    assert!(death.lines[0].contains("online=false"), "{:?}", death.lines);
    let born = nodes.take("spBv1.0/g/NBIRTH/n", &births(4), AT);
    assert!(born.gaps.is_empty());
    let again = nodes.take("spBv1.0/g/NBIRTH/n", &births(5), AT);
    assert_eq!(again.gaps[0].cause, Cause::SourceRestart);
    let device = nodes.take("spBv1.0/g/DDEATH/n/d", &payload(1, &[]), AT);
    assert_eq!((device.gaps.len(), device.lines.len()), (1, 1));
}

#[test]
fn e8_hostile_payloads_are_counted_and_change_nothing() {
    let mapping = mapping();
    let mut nodes = Nodes::new("sparkplug-t", &mapping);
    nodes.take("spBv1.0/g/NBIRTH/n", &births(3), AT);
    assert_eq!(nodes.take("spBv1.0/g/NDATA/n", &[0xff; 50], AT).rejected, 1);
    assert_eq!(nodes.take("spBv1.0/g/NWHAT/n", &payload(0, &[]), AT).rejected, 1);
    let wrong = Metric { value: Some(Held::String("x".into())), ..metric(None, Some(1), 0) };
    let nan = Metric {
        datatype: Some(10),
        value: Some(Held::Double(f64::NAN)),
        ..metric(Some("f"), None, 0)
    };
    let out = nodes.take("spBv1.0/g/NDATA/n", &payload(1, &[wrong, nan]), AT);
    assert_eq!((out.lines.len(), out.rejected), (0, 2), "{}", out.why);
    let compressed = Payload { uuid: Some("SPBV1.0_COMPRESSED".into()), ..Payload::default() };
    assert_eq!(nodes.take("spBv1.0/g/NDATA/n", &compressed.encode_to_vec(), AT).rejected, 1);
    // Metrics that are two bytes each: none is decoded before its turn, and all are counted.
    let many =
        Payload { seq: Some(2), metrics: vec![Default::default(); 100_000], ..Payload::default() };
    assert_eq!(nodes.take("spBv1.0/g/NDATA/n", &many.encode_to_vec(), AT).rejected, 100_000);
}

proptest! {
    #[test]
    fn no_bytes_stop_the_source(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in "(N|D)(BIRTH|DATA|DEATH|CMD)",
    ) {
        let mapping = mapping();
        let mut nodes = Nodes::new("sparkplug-t", &mapping);
        nodes.take("spBv1.0/g/NBIRTH/n", &births(3), AT);
        for topic in [format!("spBv1.0/g/{kind}/n"), format!("spBv1.0/g/{kind}/n/d")] {
            let out = nodes.take(&topic, &bytes, AT);
            prop_assert!(out.rejected as usize <= bytes.len().max(1));
        }
        let after = nodes.take("spBv1.0/g/NBIRTH/n", &births(3), AT);
        prop_assert_eq!(after.rejected, 0);
    }
}
