//! Attaching: who gets a volume, who waits for it, who loses it.

use std::time::{Duration, Instant};

use client_lib::{Cluster, OpenMode, OpenOptions, Volume, VolumeError};

use crate::fake::Fake;

fn cluster(fake: &Fake) -> Cluster {
    Cluster::connect([fake.url()]).expect("a good URL")
}

fn fake() -> Fake {
    let fake = Fake::start(2);
    fake.create("vol0", 3 << 20);
    fake
}

fn named(owner: &str) -> OpenOptions {
    OpenOptions { owner: owner.to_owned(), ..OpenOptions::default() }
}

fn taking(owner: &str) -> OpenOptions {
    OpenOptions { take_over: true, ..named(owner) }
}

#[test]
fn an_open_volume_is_attached_fenced_kept_alive_and_given_back() {
    let fake = fake();
    let volume = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    let holder = fake.holder("vol0").expect("it is attached");
    assert_eq!((holder.owner.as_str(), holder.mode.as_str()), ("a", "exclusive"));
    assert_eq!(fake.fenced("vol0"), 3, "every segment");
    volume.write(0, &[1; 4096]).wait().expect("it is ours");
    assert_eq!(fake.seen()[0].client, holder.client);
    fake.wait_until("a keep-alive", |fake| fake.keep_alives() > 1);
    drop(volume);
    assert_eq!(fake.holder("vol0"), None);
}

#[test]
fn what_was_asked_of_a_volume_waits_until_every_segment_is_fenced() {
    let fake = fake();
    fake.hold_fences(true);
    let opening = Volume::open(&cluster(&fake), "vol0");
    fake.wait_until("the attachment", |fake| fake.holder("vol0").is_some());
    std::thread::sleep(Duration::from_millis(200));
    assert!(fake.seen().is_empty());
    fake.hold_fences(false);
    opening.wait().expect("it is free");
}

#[test]
fn who_gives_up_opening_a_volume_gives_it_back() {
    let fake = fake();
    fake.hold_fences(true);
    let hasty = cluster(&fake).with_open_timeout(Some(Duration::from_millis(500)));
    let error = Volume::open(&hasty, "vol0").wait().expect_err("not every segment is fenced");
    assert!(error.to_string().contains("fence"), "{error}");
    fake.wait_until("its return", |fake| fake.holder("vol0").is_none());
}

#[test]
fn who_must_not_wait_is_told_who_has_the_volume() {
    let fake = fake();
    let held = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    let hasty = OpenOptions { wait: false, ..named("b") };
    let error = Volume::open_with(&cluster(&fake), "vol0", hasty).wait().expect_err("it is held");
    let (name, owner) = ("vol0".to_owned(), "a".to_owned());
    assert_eq!(error, VolumeError::Attached { name, owner });
    held.flush().wait().expect("it was left alone");
}

#[test]
fn who_stands_by_gets_the_volume_when_it_is_given_back() {
    let fake = fake();
    let held = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    held.write(0, &[7; 4096]).wait().expect("it is ours");
    let standby = cluster(&fake);
    let hasty = standby.clone().with_open_timeout(Some(Duration::from_millis(500)));
    let error = Volume::open(&hasty, "vol0").wait().expect_err("it is held");
    assert!(error.to_string().contains("it is attached to a"), "{error}");
    let opening = Volume::open_with(&standby, "vol0", named("b"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(fake.holder("vol0").map(|holder| holder.owner), Some("a".to_owned()));
    drop(held);
    let volume = opening.wait().expect("it was given back");
    let mut block = [0; 4096];
    volume.read(0, &mut block).wait().expect("it is ours");
    assert_eq!(block, [7; 4096]);
    assert_eq!(fake.holder("vol0").map(|holder| holder.owner), Some("b".to_owned()));
}

#[test]
fn a_take_over_fences_who_had_the_volume_and_he_stays_fenced() {
    let fake = fake();
    let old = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    old.write(0, &[1; 4096]).wait().expect("it is ours");
    let new = Volume::open_with(&cluster(&fake), "vol0", taking("b")).wait().expect("by force");
    assert_eq!(old.write(0, &[2; 4096]).wait(), Err(VolumeError::Fenced));
    assert_eq!(old.read(0, &mut [0; 4096]).wait(), Err(VolumeError::Fenced));
    assert_eq!(old.flush().wait(), Err(VolumeError::Fenced));
    new.write(4096, &[3; 4096]).wait().expect("it is ours");
    assert_eq!(&fake.content("vol0")[..8192], [[1; 4096], [3; 4096]].concat());
    drop(old);
    assert_eq!(fake.holder("vol0").map(|holder| holder.owner), Some("b".to_owned()));
}

#[test]
fn a_take_over_that_finds_somebody_else_looks_once_more() {
    let fake = fake();
    let held = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    fake.send_rivals(1);
    let new = Volume::open_with(&cluster(&fake), "vol0", taking("b")).wait().expect("by force");
    assert_eq!(fake.holder("vol0").map(|holder| holder.owner), Some("b".to_owned()));
    drop((held, new));
}

#[test]
fn a_take_over_that_is_beaten_twice_takes_the_volume_from_nobody_any_more() {
    let fake = fake();
    let held = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    fake.send_rivals(2);
    let hasty = OpenOptions { wait: false, ..taking("b") };
    let error = Volume::open_with(&cluster(&fake), "vol0", hasty).wait().expect_err("it is held");
    assert!(matches!(&error, VolumeError::Attached { owner, .. } if owner == "rival-3"), "{error}");
    // One who may wait stands by, as if he had never asked for force.
    fake.send_rivals(2);
    let patient = cluster(&fake).with_open_timeout(Some(Duration::from_secs(3)));
    let error = Volume::open_with(&patient, "vol0", taking("c")).wait().expect_err("it is held");
    assert!(error.to_string().contains("attached to rival-5"), "{error}");
    assert_eq!(fake.holder("vol0").map(|holder| holder.owner), Some("rival-5".to_owned()));
    drop(held);
}

#[test]
fn a_volume_is_open_in_one_way_at_a_time() {
    let fake = fake();
    let cluster = cluster(&fake);
    let held = Volume::open_with(&cluster, "vol0", named("a")).wait().expect("it is free");
    let again = Volume::open_with(&cluster, "vol0", named("a")).wait().expect("in the same way");
    again.write(0, &[5; 4096]).wait().expect("it is the same");
    let shared = OpenOptions { mode: OpenMode::Shared, ..named("a") };
    for other in [taking("a"), named("b"), shared.clone()] {
        let error = Volume::open_with(&cluster, "vol0", other).wait().expect_err("it is not");
        let said = error.to_string();
        assert!(matches!(error, VolumeError::Refused { .. }), "{error:?}");
        assert!(said.contains("open here already") && said.contains("owner \"a\""), "{said}");
    }
    Volume::open_with(&cluster, "vol0", OpenOptions::read_only())
        .wait()
        .expect("that attaches not");
    // Lost, it is open no more.
    fake.take_over("vol0", "b", false);
    let deadline = Instant::now() + Duration::from_secs(10);
    while held.read(0, &mut [0; 4096]).wait() != Err(VolumeError::Fenced) {
        assert!(Instant::now() < deadline, "it was never told");
        std::thread::sleep(Duration::from_millis(50));
    }
    Volume::open_with(&cluster, "vol0", taking("a")).wait().expect("it is taken back");
}

#[test]
fn who_asks_for_nothing_hears_of_a_take_over_all_the_same() {
    let fake = fake();
    let volume = Volume::open(&cluster(&fake), "vol0").wait().expect("it is free");
    fake.take_over("vol0", "b", false);
    let deadline = Instant::now() + Duration::from_secs(10);
    // Its servers would still take its requests: only the keep-alive tells.
    while volume.read(0, &mut [0; 4096]).wait() != Err(VolumeError::Fenced) {
        assert!(Instant::now() < deadline, "it was never told");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn sharers_and_readers_say_so() {
    let fake = fake();
    let held = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    held.write(0, &[5; 4096]).wait().expect("it is ours");
    let reader = Volume::open_with(&cluster(&fake), "vol0", OpenOptions::read_only());
    let reader = reader.wait().expect("reading needs no attachment");
    let mut block = [0; 4096];
    reader.read(0, &mut block).wait().expect("anybody may");
    assert_eq!(block, [5; 4096]);
    assert_eq!(reader.write(0, &[6; 4096]).wait(), Err(VolumeError::ReadOnly));
    assert_eq!(reader.discard(0, 4096).wait(), Err(VolumeError::ReadOnly));
    assert_eq!(fake.holder("vol0").map(|holder| holder.owner), Some("a".to_owned()));
    drop(held);
    let shared = OpenOptions { mode: OpenMode::Shared, ..named("c") };
    let _sharer = Volume::open_with(&cluster(&fake), "vol0", shared).wait().expect("it is free");
    assert_eq!(fake.holder("vol0").map(|holder| holder.mode), Some("shared".to_owned()));
}

/// Its token would be good in the new volume, where the next client gets the same one.
#[test]
fn a_volume_that_was_made_anew_after_it_was_attached_is_attached_anew() {
    let fake = fake();
    let old = fake.id("vol0");
    fake.recreate_once_attached();
    let volume = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait().expect("it is free");
    assert_ne!(fake.id("vol0"), old);
    assert_eq!(fake.holder("vol0").expect("the new one is attached").owner, "a");
    volume.write(0, &[1; 4096]).wait().expect("it is ours");
}

#[test]
fn of_two_clients_one_of_which_attached_the_volume_before_it_was_made_anew_one_opens_it() {
    let fake = fake();
    fake.recreate_once_attached();
    let first = Volume::open_with(&cluster(&fake), "vol0", named("a")).wait();
    let hasty = OpenOptions { wait: false, ..named("b") };
    let second = Volume::open_with(&cluster(&fake), "vol0", hasty).wait();
    assert!(first.is_ok() && second.is_err(), "{second:?}");
}
