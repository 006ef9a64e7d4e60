//! A map from what survivors have.

use super::*;

/// Three servers, one volume of three segments on two of them each, all served and attached.
fn cluster() -> Map {
    let mut bench = Bench::of_servers(3);
    for segment in bench.volume("v", 3, 2) {
        bench.ok(Command::Active { segment, epoch: Epoch(1), writer_pause_us: 0 });
    }
    bench.ok(Command::Attach {
        volume: "v".to_owned(),
        client: ClientId(9),
        owner: "o".to_owned(),
        mode: AttachMode::Exclusive,
        expect_writer: None,
        at_unix_ms: 1,
    });
    bench.map
}

/// A server, with a header for each segment it is a member of.
fn survivor(map: &Map, id: u64) -> Survivor {
    let copies = map
        .segments()
        .filter(|c| c.is_member(ServerId(id)))
        .map(|c| FoundCopy { config: c.clone(), is_joining: false })
        .collect();
    Survivor { server: server(id, 1), copies }
}

fn recover(remains: Remains) -> (Map, Vec<Recovered>) {
    let (map, found) = Map::recovered(remains, 500).expect("the remains agree");
    map.check().expect("it is sound");
    (map, found)
}

fn from_map(map: &Map, survivors: Vec<Survivor>) -> (Map, Vec<Recovered>) {
    recover(Remains { map: Some(map.clone()), survivors, ..Remains::default() })
}

fn from_headers(map: &Map, survivors: Vec<Survivor>) -> (Map, Vec<Recovered>) {
    recover(Remains {
        map: None,
        volumes: map.volumes().cloned().collect(),
        servers: map.servers().cloned().collect(),
        version: map.version(),
        survivors,
    })
}

#[test]
fn the_survivors_copies_serve_and_the_others_are_gone_for_good() {
    let before = cluster();
    for recovered in [from_map, from_headers] {
        let (map, found) = recovered(&before, vec![survivor(&before, 3)]);
        for (old, outcome) in before.segments().zip(&found) {
            let new = map.segment(old.segment).expect("it is there");
            let held = old.is_member(ServerId(3));
            assert_eq!(outcome.members.is_empty(), !held);
            assert_eq!(new.is_member(ServerId(3)), held, "who has a copy, and nobody else");
            assert_eq!(new.members.len(), 1);
            assert!(new.epoch.0 > old.epoch.0 + RECOVERY_STEP - 1 && new.active > Epoch(0));
        }
        assert_eq!(map.server(ServerId(1)).map(|s| s.state), Some(ServerState::Removed));
        assert_eq!(map.server(ServerId(3)).map(|s| s.state), Some(ServerState::Up));
    }
}

#[test]
fn nothing_that_fences_is_believed_from_before() {
    let before = cluster();
    let (mut map, _) = from_map(&before, vec![survivor(&before, 3)]);
    let volume = map.volume_by_name("v").expect("it is there").clone();
    assert!(volume.writer > RECOVERY_STEP && volume.attachment.is_none());
    assert!(map.segments().all(|c| c.writer == volume.writer));
    assert!(map.version().0 > before.version().0 + RECOVERY_STEP - 1);
    let version = map.version().next();
    let command = create("w", SEGMENT_BYTES, 1);
    map.apply(version, &command, &Settings::default()).expect("there is room");
    let made = map.volume_by_name("w").expect("just made");
    assert!(made.id.0 > RECOVERY_STEP && made.segments[0].0 > RECOVERY_STEP);
    let (all, gone) = map.changed_since(MapVersion(5));
    assert_eq!((all.len(), gone.len()), (4, 0), "what was skipped is not gone");
}

#[test]
fn the_highest_epoch_wins_and_a_copy_of_a_lower_one_is_no_member() {
    let before = cluster();
    let segment = before.segments().find(|c| c.is_member(ServerId(3))).expect("one").clone();
    let other = segment.members.iter().map(|m| m.server).find(|s| *s != ServerId(3));
    let other = other.expect("two members");
    // The others went on without server 3, and the survivor's map knows nothing of it.
    let mut ahead = survivor(&before, other.0);
    let copy = ahead.copies.iter_mut().find(|c| c.config.segment == segment.segment);
    let copy = copy.expect("it has one");
    copy.config.epoch = Epoch(2);
    copy.config.members.retain(|m| m.server == other);
    copy.config.primary = other;
    let (map, found) = from_map(&before, vec![survivor(&before, 3), ahead]);
    let new = map.segment(segment.segment).expect("it is there");
    assert_eq!((new.members.len(), new.primary), (1, other));
    let outcome = found.iter().find(|f| f.segment == segment.segment).expect("listed");
    assert_eq!((outcome.newest, outcome.served), (Epoch(2), Epoch(2)));
}

#[test]
fn a_copy_that_was_being_filled_or_was_left_behind_does_not_serve_by_itself() {
    let before = cluster();
    let mut alone = survivor(&before, 3);
    alone.copies[0].is_joining = true;
    // An ex-member's header names those who went on without it.
    let config = &mut alone.copies[1].config;
    config.epoch = Epoch(5);
    config.members.retain(|m| m.server != ServerId(3));
    config.primary = config.members[0].server;
    let ids = [alone.copies[0].config.segment, alone.copies[1].config.segment];
    for recovered in [from_map, from_headers] {
        let (map, found) = recovered(&before, vec![alone.clone()]);
        for id in ids {
            let config = map.segment(id).expect("it is there");
            assert!(!config.is_member(ServerId(3)), "{config:?}");
            assert!(config.active > Epoch(0), "nobody makes an empty file of it");
            let outcome = found.iter().find(|f| f.segment == id).expect("listed");
            assert_eq!(outcome.members, []);
        }
    }
}

#[test]
fn headers_alone_make_a_volume_without_a_name_and_without_holes() {
    let before = cluster();
    let mut one = survivor(&before, 1);
    one.copies.retain(|c| c.config.index != 0);
    let survivors = vec![one, survivor(&before, 3)];
    let has_first = survivors[1].copies.iter().any(|c| c.config.index == 0);
    let (map, found) = recover(Remains { survivors, ..Remains::default() });
    let id = before.volume_by_name("v").expect("it is there").id;
    let volume = map.volume(id).expect("the headers name it");
    assert_eq!((volume.name.clone(), volume.segments.len()), (format!("volume-{id}"), 3));
    assert_eq!(volume.size_bytes, 3 * SEGMENT_BYTES);
    assert_eq!(found.iter().filter(|f| f.members.is_empty()).count(), usize::from(!has_first));
}

#[test]
fn a_deleted_volume_does_not_come_back_with_a_forgotten_file() {
    let before = cluster();
    let forgotten = survivor(&before, 3);
    let mut after = before.clone();
    let command = Command::DeleteVolume { name: "v".to_owned(), force: true };
    after.apply(before.version().next(), &command, &Settings::default()).expect("by force");
    for recovered in [from_map, from_headers] {
        let (map, found) = recovered(&after, vec![forgotten.clone()]);
        assert_eq!((map.volumes().count(), found.len()), (0, 0));
        let highest = forgotten.copies.iter().map(|c| c.config.segment).max().expect("some");
        assert!(map.last_segment > highest, "its id is not given out again");
    }
}

#[test]
fn remains_that_contradict_each_other_are_refused() {
    let before = cluster();
    let one = survivor(&before, 1);
    let mut made_anew = survivor(&before, 1);
    made_anew.server.store = 99;
    for survivors in [Vec::new(), vec![one.clone(), one], vec![made_anew]] {
        let remains = Remains { map: Some(before.clone()), survivors, ..Remains::default() };
        Map::recovered(remains, 1).expect_err("they contradict");
    }
}
