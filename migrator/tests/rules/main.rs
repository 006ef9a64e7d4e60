//! The planner's rules, each as a sentence, and that no plan of a random cluster breaks a brake.
//!
//! Everything goes through the crate's public door and through a real map: a decision counts only
//! if the map takes it. Invariant: the generator is seeded, so that a failure names its seed.

mod rebuild;
mod world;

use std::collections::BTreeSet;

use migrator::{Health, Memory, Plan, View};
use smt::map::{CauseKind, Command, Criticality, Durability, ServerState};
use smt::{SegmentId, ServerId};
use world::*;

#[test]
fn a_quiet_cluster_is_left_alone() {
    let mut world = four_servers();
    for server in 1..=4 {
        world.score(server, 10.0);
    }
    assert_eq!(world.look(), Plan::default());
}

#[test]
fn a_score_below_the_threshold_moves_nothing() {
    let mut world = four_servers();
    world.score(2, 69.0);
    assert_eq!(moves(&world.look().decisions), []);
}

#[test]
fn a_score_above_the_threshold_hands_primaries_over_and_moves_the_rest() {
    let mut world = four_servers();
    world.score(2, 75.5);
    let decisions = world.look().decisions;
    let led: BTreeSet<SegmentId> =
        world.map.segments().filter(|c| c.primary == ServerId(2)).map(|c| c.segment).collect();
    assert!(!led.is_empty(), "server 2 leads something");
    let handed: BTreeSet<SegmentId> = transfers(&decisions).iter().map(|(s, _)| *s).collect();
    assert_eq!(handed, led, "every primary has another in-sync member to go to");
    let moves = moves(&decisions);
    assert_eq!(moves.len(), 2, "two at once");
    for each in moves {
        assert_eq!((each.from, each.kind), (Some(ServerId(2)), CauseKind::Score));
        assert_eq!(each.cause_server, Some(ServerId(2)));
        assert_eq!(each.score_hundredths, Some(7_550));
        assert_eq!(each.mode.as_deref(), Some("fail_slow"));
        assert!(!handed.contains(&each.segment), "a segment is not handed over and moved at once");
    }
}

#[test]
fn every_segment_of_an_ill_server_leaves_it_in_the_end() {
    let mut world = four_servers();
    world.score(2, 80.0);
    for _ in 0..60 {
        for decision in world.later(SECOND_MS).decisions {
            world.must(&decision.command);
        }
        world.finish_transfers();
        world.finish_migrations();
    }
    assert_eq!(world.map.segments_of(ServerId(2)).count(), 0);
    for config in world.map.segments() {
        assert_eq!(config.members.len(), 2, "segment {} is whole", config.segment);
    }
}

#[test]
fn a_server_about_to_die_gets_the_wide_budget() {
    for (score, at_once) in [(75.0, 2), (95.0, 4)] {
        let mut world = World::new(6, 64);
        world.volume("vol0", 24, 2, Criticality::Normal);
        world.score(2, score);
        // A server has two slots for what leaves it, so that the budget shows only with two.
        world.state(3, ServerState::Draining);
        assert_eq!(moves(&world.look().decisions).len(), at_once, "at a score of {score}");
    }
}

#[test]
fn what_would_be_lost_most_moves_first() {
    let mut world = World::new(4, 64);
    world.volume("low", 4, 2, Criticality::Low);
    world.volume("high", 4, 2, Criticality::High);
    let high = world.map.volume_by_name("high").expect("it exists").id;
    let ill = ServerId(
        (1..=4)
            .find(|id| {
                let id = ServerId(*id);
                world.map.segments().any(|c| c.volume == high && c.is_member(id) && c.primary != id)
            })
            .expect("somebody is backup of it"),
    );
    world.score(ill.0, 75.0);
    let first = moves(&world.look().decisions).first().cloned().expect("something moves");
    let config = world.map.segment(first.segment).expect("it exists");
    assert_eq!(config.volume, high);
}

#[test]
fn a_hot_segment_moves_before_cold_ones() {
    let mut world = four_servers();
    let backed: Vec<SegmentId> = world
        .map
        .segments()
        .filter(|c| c.is_member(ServerId(2)) && c.primary != ServerId(2))
        .map(|c| c.segment)
        .collect();
    let hot = *backed.last().expect("server 2 is backup of something");
    world.heat.insert(hot, 1_000);
    world.score(2, 75.0);
    assert_eq!(moves(&world.look().decisions)[0].segment, hot);
}

#[test]
fn segments_leave_in_the_order_of_loss_averted_per_byte() {
    let mut world = World::new(4, 256);
    world.volume("normal", 16, 2, Criticality::Normal);
    world.volume("high", 16, 2, Criticality::High);
    let ill = ServerId(2);
    let mut backed: Vec<(SegmentId, bool)> = Vec::new();
    for config in world.map.segments().filter(|c| c.is_member(ill) && c.primary != ill) {
        let name = &world.map.volume(config.volume).expect("it exists").name;
        backed.push((config.segment, name == "high"));
    }
    let (high, normal): (Vec<_>, Vec<_>) = backed.into_iter().partition(|(_, is_high)| *is_high);
    assert!(high.len() >= 2 && normal.len() >= 2, "server 2 is backup of some of each");
    // Worth in units of probability ÷ bytes: 2 × (1 + 19), 1 × (1 + 29), 2 × (1 + 9), 1 × (1 + 9).
    let heats = [(high[0].0, 19), (normal[0].0, 29), (high[1].0, 9), (normal[1].0, 9)];
    for (segment, heat) in heats {
        world.heat.insert(segment, heat);
    }
    world.score(2, 75.0);
    world.policy.moves_max = 1;
    for (segment, _) in heats {
        let decisions = world.later(10 * SECOND_MS).decisions;
        assert_eq!(moves(&decisions)[0].segment, segment, "{heats:?}");
        for decision in &decisions {
            if moves(std::slice::from_ref(decision)).len() == 1 {
                world.must(&decision.command);
            }
        }
        world.finish_migrations();
    }
}

#[test]
fn a_planner_that_only_watched_goes_on_where_the_leader_was() {
    let mut world = four_servers();
    world.score(2, 75.0);
    world.only_watch();
    // Not below 55, so that it is relieved still, and a planner that never saw 75 would not know.
    world.score(2, 60.0);
    assert!(!moves(&world.later(SECOND_MS).decisions).is_empty());
    world.memory = Memory::default();
    assert_eq!(moves(&world.later(SECOND_MS).decisions), []);
}

#[test]
fn a_planner_that_watched_knows_what_is_no_group_event_any_more() {
    let mut world = four_servers();
    world.volume("more", 8, 1, Criticality::Normal);
    for server in 1..=3 {
        world.score(server, 60.0);
    }
    world.only_watch();
    world.now_ms += world.policy.group_ms;
    world.score(2, 80.0);
    assert!(!moves(&world.later(SECOND_MS).decisions).is_empty(), "they crossed long ago");
    world.memory = Memory::default();
    let plan = world.later(10 * SECOND_MS);
    assert!(says(&plan, &["group"]), "to a planner without a past they cross now: {plan:?}");
}

#[test]
fn what_was_only_watched_does_not_rest() {
    let mut world = four_servers();
    world.score(2, 75.0);
    world.only_watch();
    assert!(!moves(&world.look().decisions).is_empty(), "nothing was decided yet");
}

#[test]
fn nothing_moves_onto_a_server_at_risk_or_closed_or_silent() {
    let mut world = four_servers();
    world.score(2, 75.0);
    world.health.insert(ServerId(1), Health { score_high: Some(50.0), ..heard(Some(20.0)) });
    world.state(3, ServerState::Cordoned);
    world.silence(4, 6_000);
    let plan = world.look();
    assert_eq!(moves(&plan.decisions), []);
    assert!(says(&plan, &["vol0/", "server 4 is not fit", "server 3 is cordoned"]), "{plan:?}");
}

#[test]
fn an_idle_server_without_a_score_is_a_target() {
    let mut world = four_servers();
    world.score(2, 75.0);
    world.score(1, 60.0);
    world.score(3, 60.0);
    world.health.insert(ServerId(4), heard(None));
    // Two of four crossed 50 beside server 2: a group event, unless it was long ago.
    world.policy.group_ms = 0;
    world.look();
    let moves = moves(&world.later(10 * SECOND_MS).decisions);
    assert!(!moves.is_empty(), "server 4 can take something");
    assert!(moves.iter().all(|m| m.to == ServerId(4)), "{moves:?}");
}

#[test]
fn only_one_of_few_servers_is_relieved_at_once() {
    let mut world = World::new(5, 64);
    world.volume("vol0", 10, 2, Criticality::Normal);
    world.score(2, 75.0);
    world.score(3, 85.0);
    let plan = world.look();
    for each in moves(&plan.decisions) {
        assert_eq!(each.from, Some(ServerId(3)), "the worse one goes first");
    }
    assert!(says(&plan, &["server 2"]), "{plan:?}");
}

#[test]
fn a_group_that_falls_ill_together_freezes_what_scores_ask_for_and_says_so() {
    let mut world = four_servers();
    for server in 1..=3 {
        world.score(server, 80.0);
    }
    let plan = world.look();
    assert_eq!(plan.decisions, []);
    assert!(says(&plan, &["group"]), "{plan:?}");
}

#[test]
fn a_group_event_does_not_stop_a_drain() {
    let mut world = World::new(6, 64);
    world.volume("vol0", 12, 2, Criticality::Normal);
    for server in 1..=4 {
        world.score(server, 60.0);
    }
    world.state(1, ServerState::Draining);
    let moves = moves(&world.look().decisions);
    assert!(!moves.is_empty());
    assert!(moves.iter().all(|m| m.kind == CauseKind::Drain), "{moves:?}");
}

#[test]
fn a_server_that_is_a_little_better_is_still_relieved_and_a_well_one_is_after_a_hold() {
    let mut world = four_servers();
    world.score(2, 75.0);
    world.look();
    let hold_ms = world.policy.hold_ms;
    world.score(2, 60.0);
    for _ in 0..3 {
        let begun = moves(&world.later(hold_ms).decisions);
        assert!(!begun.is_empty(), "60 is not 15 below 70, however long");
    }
    world.score(2, 40.0);
    assert!(!moves(&world.later(10 * SECOND_MS).decisions).is_empty(), "the hold has begun");
    assert_eq!(moves(&world.later(hold_ms).decisions), []);
}

#[test]
fn a_drained_server_is_emptied_by_the_same_machinery_and_says_what_it_waits_for() {
    let mut world = four_servers();
    world.volume("more", 16, 2, Criticality::Normal);
    world.state(2, ServerState::Draining);
    let plan = world.look();
    let begun = moves(&plan.decisions);
    assert_eq!(begun.len(), 2);
    for each in begun {
        assert_eq!((each.kind, each.score_hundredths), (CauseKind::Drain, None));
        assert_eq!((each.from, each.cause_server), (Some(ServerId(2)), Some(ServerId(2))));
    }
    let on_it = world.map.segments_of(ServerId(2)).count();
    assert!(on_it > 2 && !plan.waits.is_empty(), "the rest waits, and says so");
}

#[test]
fn a_drain_that_no_server_can_take_says_why() {
    let mut world = World::new(3, 64);
    world.volume("vol0", 4, 3, Criticality::Normal);
    world.state(3, ServerState::Draining);
    world.look();
    world.finish_transfers();
    let mut heard_why = false;
    for _ in 0..10 {
        let plan = world.later(SECOND_MS);
        for decision in &plan.decisions {
            world.must(&decision.command);
        }
        world.finish_transfers();
        assert_eq!(moves(&plan.decisions), [], "there is no fourth server");
        heard_why |= says(&plan, &["vol0/", "server 1 has a replica"]);
    }
    assert!(heard_why);
}

#[test]
fn a_wish_to_hand_over_that_is_not_fulfilled_is_at_least_told() {
    let mut world = four_servers();
    world.state(2, ServerState::Draining);
    for decision in world.look().decisions {
        world.must(&decision.command);
    }
    world.finish_migrations();
    // The primaries were asked, and none of them hands over.
    let asked: Vec<u32> =
        world.map.segments().filter(|c| c.transfer.is_some()).map(|c| c.index).collect();
    assert!(!asked.is_empty());
    let plan = world.later(10 * SECOND_MS);
    for index in asked {
        assert!(says(&plan, &[&format!("vol0/{index}")]), "vol0/{index} is told: {:?}", plan.waits);
    }
}

#[test]
fn two_moves_onto_one_server_fit_it_together() {
    // Room for 85 % of twice 3 segments: 5 of them.
    let mut world = World::new(3, 3);
    world.volume("vol0", 5, 1, Criticality::Normal);
    world.state(1, ServerState::Draining);
    for _ in 0..30 {
        for decision in world.later(SECOND_MS).decisions {
            world.must(&decision.command);
        }
        world.finish_migrations();
    }
}

/// SplitMix64: seeded, so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn score(&mut self) -> Option<f64> {
        let whole = u32::try_from(self.roll(101)).expect("at most 100");
        (self.roll(4) > 0).then(|| f64::from(whole))
    }
}

/// Something befalls the cluster.
fn befall(world: &mut World, dice: &mut Dice, servers: u64) {
    let server = 1 + dice.roll(servers);
    match dice.roll(10) {
        0..=3 => {
            let score = dice.score();
            let wide = f64::from(u32::try_from(dice.roll(60)).expect("below 60"));
            let high = score.map(|s| (s + wide).min(100.0));
            world.health.insert(ServerId(server), Health { score_high: high, ..heard(score) });
        }
        4 => {
            let silent_ms = dice.roll(30) * SECOND_MS;
            world.health.entry(ServerId(server)).or_default().silent_ms = silent_ms;
        }
        5 => {
            let states = [ServerState::Up, ServerState::Cordoned, ServerState::Draining];
            let state = states[usize::try_from(dice.roll(3)).expect("below 3")];
            // The map may have its reasons against it.
            drop(world.apply(&Command::SetServerState { server: ServerId(server), state }));
        }
        6 => {
            world.evict_everywhere(server);
        }
        7 => world.finish_transfers(),
        _ => world.finish_migrations(),
    }
}

/// What stands against a plan, judged from the view alone.
fn judge(world: &World, plan: &Plan, frozen: bool) -> Result<(), String> {
    let policy = &world.policy;
    let shadow = policy.thresholds.shadow;
    let health = |server: ServerId| world.health.get(&server).cloned().unwrap_or_default();
    let begun = moves(&plan.decisions);
    let handed = transfers(&plan.decisions);

    let wide = world.health.values().any(|h| h.score.is_some_and(|s| s >= 90.0));
    let most = if wide { policy.moves_wide_max } else { policy.moves_max };
    let running = world.map.segments().filter(|c| c.joining.is_some()).count();
    let copies = |m: &Move| world.map.segment(m.segment).map_or(0, |c| c.members.len());
    let is_last_copy = |m: &Move| m.kind == CauseKind::Rebuild && copies(m) == 1;
    let last_copies = begun.iter().any(is_last_copy);
    let most = if last_copies { policy.moves_wide_max } else { most };
    if !begun.is_empty() && running + begun.len() > most {
        return Err(format!("{running} run, {} begin, {most} may", begun.len()));
    }
    if says(plan, &["rebuilding is frozen but for last copies"]) {
        let away = |id: &ServerId| health(*id).silent_ms >= policy.silent_after_ms();
        if world.health.keys().filter(|id| away(id)).count() < 2 {
            return Err("frozen, and at most one is silent".to_owned());
        }
    }
    let mut touched = BTreeSet::new();
    for segment in begun.iter().map(|m| m.segment).chain(handed.iter().map(|(s, _)| *s)) {
        if !touched.insert(segment) {
            return Err(format!("two decisions on segment {segment}"));
        }
    }
    for each in &begun {
        let config = world.map.segment(each.segment).ok_or("an unknown segment")?;
        let to = health(each.to);
        let risky =
            to.score.is_some_and(|s| s >= shadow) || to.score_high.is_some_and(|s| s >= shadow);
        if risky || to.silent_ms >= policy.silent_after_ms() {
            return Err(format!("{each:?} goes to a server at risk: {to:?}"));
        }
        if world.map.server(each.to).is_none_or(|s| s.state != ServerState::Up) {
            return Err(format!("{each:?} goes to a server that is closed"));
        }
        if config.is_member(each.to) || config.joining.is_some() {
            return Err(format!("{each:?} of {config:?}"));
        }
        if each.from.is_some_and(|from| !config.is_member(from)) {
            return Err(format!("{each:?} takes what is not there"));
        }
        if frozen && each.kind == CauseKind::Score {
            return Err(format!("{each:?} in a group event"));
        }
    }
    for (segment, heir) in &handed {
        let config = world.map.segment(*segment).ok_or("an unknown segment")?;
        if config.joining.is_some() || !config.is_member(*heir) || config.primary == *heir {
            return Err(format!("segment {segment} is handed to {heir}: {config:?}"));
        }
        if health(*heir).score.is_some_and(|s| s >= shadow) {
            return Err(format!("segment {segment} is handed to {heir}, which is at risk"));
        }
    }
    let relieved: BTreeSet<_> =
        begun.iter().filter(|m| m.kind == CauseKind::Score).map(|m| m.cause_server).collect();
    let servers = world.map.servers().filter(|s| s.state != ServerState::Removed).count();
    if relieved.len() > (servers / 10).max(1) {
        return Err(format!("{relieved:?} of {servers} servers are relieved"));
    }
    Ok(())
}

#[test]
fn no_plan_of_a_random_cluster_breaks_a_brake_or_is_refused() {
    let mut begun = 0_usize;
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let servers = 2 + dice.roll(12);
        let mut world = World::new(servers, 4 + dice.roll(12));
        let replicas = u8::try_from(1 + dice.roll(3.min(servers))).expect("at most 3");
        for volume in 0..3 {
            let segments = 1 + dice.roll(4);
            let create = Command::CreateVolume {
                name: format!("vol{volume}"),
                size_bytes: segments * SEGMENT_BYTES,
                segment_bytes: SEGMENT_BYTES,
                replicas,
                criticality: Criticality::Normal,
                durability: Durability::WriteThrough,
            };
            // A full cluster may have no room for the third.
            drop(world.apply(&create));
        }
        world.serve();
        for step in 0..60 {
            befall(&mut world, &mut dice, servers);
            world.now_ms += SECOND_MS * (1 + dice.roll(5));
            let mut twin = world.memory.clone();
            let plan = world.look();
            let view = View {
                map: &world.map,
                health: &world.health,
                heat: &world.heat,
                now_ms: world.now_ms,
            };
            let again = migrator::plan(view, &world.policy, &mut twin);
            assert_eq!((&plan, &world.memory), (&again, &twin), "seed {seed}, step {step}");
            let frozen = says(&plan, &["group"]);
            if let Err(reason) = judge(&world, &plan, frozen) {
                panic!("seed {seed}, step {step}: {reason}");
            }
            for decision in &plan.decisions {
                assert!(!decision.why.is_empty());
                let taken = world.apply(&decision.command);
                assert!(taken.is_ok(), "seed {seed}, step {step}: {decision:?} is {taken:?}");
            }
            begun += moves(&plan.decisions).len();
        }
    }
    assert!(begun > 1_000, "the random clusters had something to do: {begun} moves");
}
