//! Whatever commands come, in whatever order: the map stays sound, and two of them stay equal.

use proptest::prelude::*;

use super::*;

/// A command as the generator sees it: small numbers, resolved against the map so that many of
/// them are accepted.
#[derive(Clone, Debug)]
struct Draw {
    what: u8,
    segment: u64,
    server: u64,
    other: u64,
    stale: bool,
    flag: bool,
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let draw = (0_u8..18, 0_u64..6, 0_u64..7, 0_u64..7, 0_u8..8, any::<bool>());
    let draw = draw.prop_map(|(what, segment, server, other, stale, flag)| Draw {
        what,
        segment,
        server,
        other,
        stale: stale == 0,
        flag,
    });
    proptest::collection::vec(draw, 1..120)
}

fn command(map: &Map, draw: &Draw) -> Command {
    let server = ServerId(draw.server);
    let count = map.segments().count().max(1);
    let nth = usize::try_from(draw.segment).expect("small") % count;
    let config = map.segments().nth(nth);
    let segment = config.map_or(SegmentId(draw.segment), |c| c.segment);
    let epoch = config.map_or(Epoch(1), |c| c.epoch);
    let expect = if draw.stale { Epoch(epoch.0.wrapping_sub(1)) } else { epoch };
    let migration =
        config.and_then(|c| c.joining).map_or(MigrationId(draw.other), |joining| joining.migration);
    // Mostly a server that can play the part; any one otherwise.
    let nth_of = |ids: Vec<ServerId>, n: u64| -> ServerId {
        let n = usize::try_from(n).expect("small");
        if draw.stale || ids.is_empty() { server } else { ids[n % ids.len()] }
    };
    let members = config.map_or(Vec::new(), |c| c.members.iter().map(|m| m.server).collect());
    let member = nth_of(members, draw.other);
    let outside = |s: &&Server| config.is_some_and(|c| !c.is_member(s.id));
    let outsider = nth_of(map.servers().filter(outside).map(|s| s.id).collect(), draw.server);
    let life = map.server(server).map_or(1, |s| s.incarnation.0 + 1);
    match draw.what {
        0 | 1 => {
            let mut entry = super::server(draw.server, if draw.stale { 1 } else { life });
            entry.zone = format!("z{}", draw.other % 3);
            entry.capacity_bytes = 8 * SEGMENT_BYTES;
            Command::RegisterServer(entry)
        }
        2 => {
            let states = [
                ServerState::Up,
                ServerState::Cordoned,
                ServerState::Draining,
                ServerState::Down,
                ServerState::Removed,
            ];
            let state = states[usize::try_from(draw.other).expect("small") % states.len()];
            // Removals are rare, or no servers are left to play with.
            let state = if draw.flag { ServerState::Up } else { state };
            Command::SetServerState { server, state }
        }
        3 => {
            let replicas = u8::try_from(draw.other).expect("small");
            create(&format!("v{}", draw.segment % 3), (draw.server + 1) * 512 * 1024, replicas)
        }
        4 if draw.stale => {
            Command::DeleteVolume { name: format!("v{}", draw.segment % 3), force: draw.flag }
        }
        4 | 5 => Command::Evict { segment, expect, server: member },
        6 => Command::NewPrimary { segment, expect, server: member },
        7 => Command::RequestTransfer { segment, expect, server: member },
        8 => Command::Transfer { segment, expect, server: member },
        9..=11 => {
            let from = draw.flag.then_some(member);
            migrate(segment, expect, from, outsider)
        }
        12 => Command::MigrationProgress {
            migration,
            state: if draw.stale { MigrationState::Done } else { MigrationState::Copying },
            progress: CopyProgress { bytes_copied: draw.other, ..CopyProgress::default() },
        },
        13 => promotion(segment, expect, migration),
        14 => abort(segment, expect, migration),
        15 => Command::Attach {
            volume: format!("v{}", draw.segment % 3),
            client: ClientId(draw.other),
            owner: "somebody".to_owned(),
            mode: if draw.flag { AttachMode::Shared } else { AttachMode::Exclusive },
            expect_writer: draw.stale.then_some(draw.server % 4),
            at_unix_ms: draw.server,
        },
        16 => {
            let volume = format!("v{}", draw.segment % 3);
            let newest = map.volume_by_name(&volume).map_or(0, |v| v.writer);
            let writer = newest.saturating_sub(u64::from(draw.stale));
            Command::Detach { volume, client: ClientId(draw.other), writer }
        }
        _ => Command::Active { segment, epoch: expect, writer_pause_us: draw.other },
    }
}

/// I5 from the outside, by comparing two maps: independent of `check::follows`.
fn assert_follows(before: &Map, after: &Map, command: &Command) {
    for old in before.segments() {
        let Some(new) = after.segment(old.segment) else {
            assert!(matches!(command, Command::DeleteVolume { .. }));
            continue;
        };
        let grew = new.epoch.0 - old.epoch.0;
        let same = old.members == new.members && old.primary == new.primary;
        let ended = old.joining.is_some() && new.joining.is_none();
        let taken_back = matches!(command, Command::RequestTransfer { .. })
            && old.transfer.is_some()
            && new.transfer.is_none();
        assert_eq!(
            grew,
            u64::from(!same || ended || taken_back),
            "{command:?}: {old:?} -> {new:?}"
        );
        assert!(!new.members.is_empty());
        for member in &new.members {
            let joined = matches!(command, Command::Promote { .. })
                && old.joining.map(|j| j.target) == Some(member.server);
            assert!(old.is_member(member.server) || joined, "{command:?}: {old:?} -> {new:?}");
        }
    }
    for server in after.servers() {
        let held = after
            .segments()
            .filter(|c| c.is_member(server.id) || c.joining.is_some_and(|j| j.target == server.id))
            .count();
        let held = u64::try_from(held).expect("small");
        assert_eq!(after.used_bytes(server.id), held * SEGMENT_BYTES);
        let slots = after.slots(server.id);
        assert!(slots.incoming <= 2 && slots.outgoing <= 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_map_sound_and_two_maps_equal(draws in draws()) {
        let settings = Settings::default();
        let (mut one, mut two) = (Map::new(), Map::new());
        for id in 1..=4 {
            let first = Command::RegisterServer(super::server(id, 1));
            one.apply(MapVersion(id), &first, &settings).expect("a new server");
            two.apply(MapVersion(id), &first, &settings).expect("a new server");
        }
        for draw in &draws {
            let command = command(&one, draw);
            let version = one.version().next();
            let before = one.clone();
            let first = one.apply(version, &command, &settings);
            let second = two.apply(version, &command, &settings);
            prop_assert_eq!(&first, &second);
            prop_assert_eq!(one.check(), Ok(()));
            assert_follows(&before, &one, &command);
            for volume in one.volumes() {
                let earlier = before.volume(volume.id).map_or(0, |v| v.writer);
                prop_assert!(earlier <= volume.writer, "a token went back");
            }
            if first.is_err() {
                prop_assert!(one.volumes().eq(before.volumes()));
                prop_assert!(one.segments().eq(before.segments()));
                prop_assert!(one.migrations().eq(before.migrations()));
                prop_assert!(one.servers().eq(before.servers()));
            }
            // A server that follows by deltas ends at the same place.
            let (changed, gone) = one.changed_since(before.version());
            let mut followed: std::collections::BTreeMap<SegmentId, SegmentConfig> =
                before.segments().map(|c| (c.segment, c.clone())).collect();
            followed.extend(changed.into_iter().map(|c| (c.segment, c)));
            followed.retain(|id, _| !gone.contains(id));
            prop_assert!(followed.values().eq(one.segments()));
        }
        prop_assert_eq!(&one, &two);
        prop_assert_eq!(one.digest(), two.digest());
        let bytes = postcard::to_stdvec(&one).expect("it serialises");
        prop_assert_eq!(&bytes, &postcard::to_stdvec(&two).expect("it serialises"));
        let back: Map = postcard::from_bytes(&bytes).expect("what we wrote");
        prop_assert_eq!(back, one);
    }
}
