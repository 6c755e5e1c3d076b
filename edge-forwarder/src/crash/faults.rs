//! Damage, lost state, a server that went back, a full disk, a copied device.

use std::path::Path;

use millrace_platform::{disk::Disk, sim::disk::Faults};

use super::world::{DEVICE, DIR, SIZES, World, group};
use crate::queue::Queue;

/// Bits flip in the queue's files while the device is off.
pub(super) fn damaged(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    world.may_lose = true;
    world.exact = false;
    for _ in 0..4 {
        for _ in 0..15 {
            world.step();
        }
        world.kill();
        let files = world.files();
        if files.is_empty() {
            continue;
        }
        let file = &files[world.dice.below(files.len() as u64) as usize];
        let len = world.disk.open(file, millrace_platform::disk::OpenMode::Read).unwrap();
        let len = len.len().unwrap().max(1);
        let (byte, bit) = (world.dice.below(len), world.dice.below(8) as u8);
        world.disk.flip_bit(file, byte, bit).unwrap();
    }
    world.drain();
    world.books()
}

/// The server loses rows that it had acknowledged, once or twice. Of a split the rows before it are
/// never asked for again, so there is none here.
pub(super) fn forgotten(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    world.share.split_rows = u64::MAX;
    world.may_lose = true;
    for _ in 0..3 {
        for _ in 0..25 {
            world.step();
        }
        world.cut_connection();
        let (nth, rows) = (world.dice.below(6) as usize, 1 + world.dice.below(60) as usize);
        world.server.forget(nth, rows);
    }
    for _ in 0..25 {
        world.step();
    }
    world.drain();
    world.books()
}

/// Both files of the state are lost. A file is then read again from where the log says, so only
/// rows of standard input are looked at.
pub(super) fn stateless(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    world.may_lose = true;
    world.exact = false;
    world.stdin_only = true;
    for _ in 0..3 {
        for _ in 0..20 {
            world.step();
        }
        world.settle();
        world.kill();
        for file in ["state-0", "state-1"] {
            // Missing before the first start.
            drop(world.disk.flip_bit(&Path::new(DIR).join(file), 60, 1));
        }
    }
    for _ in 0..20 {
        world.step();
    }
    world.drain();
    world.books()
}

/// The whole queue is lost, again and again, each time after everything was delivered.
pub(super) fn lost(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    world.stdin_only = true;
    for _ in 0..3 {
        for _ in 0..12 {
            world.step();
        }
        world.drain();
        world.kill();
        for file in world.files() {
            world.disk.remove(&file).unwrap();
        }
    }
    world.drain();
    world.books()
}

/// Acks of other streams come again just before the connection is cut.
pub(super) fn repeated(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    for _ in 0..12 {
        world.offer();
        world.pump(20);
        world.serve();
        world.take_acks(usize::MAX);
        world.offer();
        world.pump(20);
        for _ in 0..3 {
            world.repeat_ack();
        }
        world.take_acks(usize::MAX);
        world.settle();
        world.cut_connection();
    }
    world.drain();
    world.books()
}

/// The server refuses messages with certain rows, for good; later an operator has the cause taken
/// away and all of it sent again, with kills and power cuts on the way.
pub(super) fn refused(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    world.poisonous = 15;
    for _ in 0..80 {
        world.step();
    }
    world.poisonous = 0;
    world.drain();
    let mut wrong = world.books();
    let poison = std::mem::take(&mut world.server.poison);
    let cut_after = Some(world.disk.ops() + world.dice.below(120));
    for _ in 0..12 {
        world.disk.set_faults(Faults { cut_after, ..Faults::default() });
        world.retry();
        world.step();
    }
    world.disk.set_faults(Faults::default());
    world.power_cut();
    for _ in 0..3 {
        world.retry();
        world.drain();
    }
    let left = world.queue.as_ref().map_or(0, |q| q.aside().len());
    if left > 0 {
        wrong.push(format!("{left} messages are still put aside after they were sent again"));
    }
    // The books may show gaps of refused rows.
    world.server.poison = poison;
    wrong.extend(world.books());
    let there: Vec<u64> = world.server.ledger.values().flatten().copied().collect();
    let missing = world.server.poison.iter().filter(|id| world.was_stored(**id));
    wrong.extend(
        missing.filter(|id| !there.contains(id)).map(|id| format!("row {id} stayed put aside")),
    );
    wrong
}

/// Long outages, so that rows are split into backfill and live again and again, and refusals in
/// both.
pub(super) fn outages(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    world.poisonous = 3;
    for _ in 0..6 {
        for _ in 0..6 {
            world.offer();
        }
        for _ in 0..20 {
            world.step();
        }
        world.cut_connection();
        if world.dice.below(3) == 0 {
            world.power_cut();
        }
    }
    world.poisonous = 0;
    world.drain();
    world.books()
}

/// The disk fills up, stays full for a while, and has room again.
pub(super) fn full(seed: u64) -> Vec<String> {
    let mut world = World::seeded(seed);
    for _ in 0..20 {
        world.step();
    }
    let capacity = Some(world.disk.used() + world.dice.below(40_000));
    for _ in 0..40 {
        world.disk.set_faults(Faults { capacity, ..Faults::default() });
        world.step();
    }
    world.disk.set_faults(Faults { capacity, ..Faults::default() });
    // Nobody makes room: delivery alone must.
    world.drain();
    world.books()
}

#[test]
fn d4_a_message_that_the_server_refuses_for_good_holds_nothing_up_and_can_be_sent_again() {
    check("refused", refused, 0..120);
}

#[test]
fn e6_d2_outages_upon_outages_deliver_both_lanes_once() {
    check("outages", outages, 0..120);
}

#[test]
fn e6_live_rows_go_before_a_backlog_and_backfill_follows() {
    let mut world = World::seeded(9);
    world.stdin_only = true;
    for _ in 0..40 {
        world.offer();
    }
    let backlog = world.stdin_next;
    // The connection finds the backlog; then live rows come.
    world.pump(1);
    world.offer();
    world.offer();
    let live: Vec<u64> = (backlog..world.stdin_next).collect();
    world.pump(30);
    world.serve();
    let there = world.server.arrived.clone();
    let last = live.iter().map(|id| there.iter().position(|t| t == id)).max().flatten();
    assert!(live.iter().all(|id| there.contains(id)), "{live:?} are not all of {there:?}");
    assert!(last.unwrap() < there.len() - 1, "backfill has its share too");
    let before = there.iter().take(last.unwrap()).filter(|id| !live.contains(id)).count();
    assert!(before < there.len() / 2, "{before} rows of the backlog came before");
    world.drain();
    assert!(world.books().is_empty(), "{:?}", world.books());
}

fn check(what: &str, history: fn(u64) -> Vec<String>, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let wrong = history(seed);
        assert!(wrong.is_empty(), "{what}, seed {seed}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn e8_e9_a_flipped_bit_anywhere_costs_at_most_what_a_gap_says_and_never_the_queue() {
    check("damage", damaged, 0..150);
}

#[test]
fn d2_a_server_that_went_back_gets_again_what_is_there_and_a_gap_for_the_rest() {
    check("forgetful server", forgotten, 0..150);
}

#[test]
fn d2_e8_a_queue_without_its_state_goes_on_in_a_new_epoch_and_says_so() {
    check("no state", stateless, 0..100);
}

#[test]
fn d2_a_queue_that_was_lost_as_a_whole_begins_in_a_new_epoch() {
    check("lost queue", lost, 0..60);
}

#[test]
fn d2_an_ack_that_comes_again_is_an_ack_of_its_own_rows_only() {
    check("repeated acks", repeated, 0..60);
}

#[test]
fn e6_a_full_disk_stops_the_sources_and_delivery_alone_makes_room() {
    check("full disk", full, 0..100);
}

#[test]
fn e9_a_lost_state_is_a_gap_record_and_both_epochs_are_delivered() {
    let mut world = World::seeded(1);
    world.may_lose = true;
    world.stdin_only = true;
    world.offer();
    world.kill();
    for file in ["state-0", "state-1"] {
        drop(world.disk.remove(&Path::new(DIR).join(file)));
    }
    world.offer();
    world.drain();
    assert!(world.books().is_empty(), "{:?}", world.books());
    let causes: Vec<&str> = world.server.gaps.iter().map(|g| g.cause.as_str()).collect();
    assert_eq!(causes, ["state_lost"]);
    let epochs: std::collections::BTreeSet<u64> =
        world.server.ledger.keys().map(|(_, epoch)| *epoch).collect();
    assert_eq!(epochs.len(), 2);
}

#[test]
fn d2_a_copied_device_forks_instead_of_losing_its_rows_as_duplicates() {
    let mut world = World::seeded(3);
    world.may_lose = true;
    world.stdin_only = true;
    for _ in 0..4 {
        world.offer();
    }
    world.drain();
    world.kill();
    // The copy, on a disk of its own, is the first to send new rows.
    let mut copy = World::seeded(4);
    copy.disk = world.disk.fork();
    copy.server = std::mem::take(&mut world.server);
    let ids: Vec<u64> = (5_000_000..5_000_050).collect();
    let queue = Queue::open(&copy.ground(), DEVICE, Path::new(DIR), SIZES).unwrap();
    assert!(queue.append(&[group("stdin", &ids, 1, None)])[0].is_ok());
    drop(queue);
    copy.disk.kill_process();
    copy.stdin_only = true;
    copy.stdin_next = 6_000_000;
    copy.drain();
    // Now the original, with other rows under the same numbers.
    world.server = std::mem::take(&mut copy.server);
    world.offer();
    world.drain();
    assert!(world.books().is_empty(), "{:?}", world.books());
    assert!(world.server.gaps.iter().any(|g| g.cause == "fork"), "{:?}", world.server.gaps);
    let there: Vec<u64> = world.server.ledger.values().flatten().copied().collect();
    assert!(ids.iter().all(|id| there.contains(id)), "the copy's rows are there too");
}

#[test]
fn e9_frames_of_a_foreign_key_are_a_gap_and_no_reason_not_to_start() {
    let mut world = World::seeded(5);
    world.may_lose = true;
    world.stdin_only = true;
    let mut other = world.ground();
    other.keys = std::sync::Arc::new(super::world::Keys([8; 32]));
    let queue = Queue::open(&other, DEVICE, Path::new(DIR), SIZES).unwrap();
    let ids: Vec<u64> = (1..50).collect();
    assert!(queue.append(&[group("stdin", &ids, 1, None)])[0].is_ok());
    drop(queue);
    world.kill();
    world.offer();
    world.drain();
    assert!(world.books().is_empty(), "{:?}", world.books());
    let causes: Vec<&str> = world.server.gaps.iter().map(|g| g.cause.as_str()).collect();
    assert!(causes.contains(&"quarantine"), "{causes:?}");
}
