//! The planner: from a view to a plan.
//!
//! Invariant: the same view, policy and memory give the same plan. Moves are ordered by expected
//! loss averted per byte: probability × (1 + heat) × criticality ÷ bytes (DESIGN 6).

use std::collections::{BTreeMap, BTreeSet};

use smt::map::{Cause, CauseKind, Command, Criticality, SegmentConfig, ServerState};
use smt::placement::choose_target_replacing;
use smt::{SegmentId, ServerId};

use crate::policy::Policy;
use crate::view::{Decision, Health, Plan, View};

/// What the planner remembers between views.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Servers being relieved because of their score, and since when that is low again.
    relieved: BTreeMap<ServerId, Option<u64>>,
    /// When each server last crossed the shadow threshold from below.
    crossed: BTreeMap<ServerId, u64>,
    above: BTreeSet<ServerId>,
    /// Since when a segment has fewer members than it should.
    short_since: BTreeMap<SegmentId, u64>,
    /// The members each segment had when it was last seen whole: who left, once it is not.
    whole: BTreeMap<SegmentId, Vec<ServerId>>,
    /// Servers that are down and of which nothing is missing any more: they hide nothing.
    replaced: BTreeSet<ServerId>,
    /// When a decision on a segment was last made: the map needs a moment to show it.
    decided: BTreeMap<SegmentId, u64>,
}

/// A decision on one segment rests for this long before another is made.
const REST_MS: u64 = 3000;

struct Planning<'a> {
    view: View<'a>,
    policy: &'a Policy,
    /// Segments that are joining, or get a joiner by this plan.
    moving: usize,
    moves_max: usize,
    /// So many servers are silent that what they held is not rebuilt, last copies excepted.
    is_dark: bool,
    planned_in: BTreeMap<ServerId, u32>,
    planned_in_bytes: BTreeMap<ServerId, u64>,
    planned_out: BTreeMap<ServerId, u32>,
    /// Being relieved: no targets, though their scores fade once they are idle.
    ill: BTreeSet<ServerId>,
    plan: Plan,
}

/// How long the map is left to settle after a member left, before the next thing is done about it.
const SETTLE_MS: u64 = 2000;

/// What has become of a member that a segment lacks.
enum Lost {
    /// Removed for good.
    Gone,
    /// Not heard from since it left, and not for long.
    Away(ServerId),
    /// Heard from since it left, and fit to take a replica.
    Back(ServerId),
    /// Unknown, silent for too long, or not fit to take it back.
    Elsewhere,
}

/// A wish to move one replica, and how much it is worth.
struct Wish<'a> {
    config: &'a SegmentConfig,
    from: Option<ServerId>,
    /// Where it should go, if it can.
    rather_to: Option<ServerId>,
    cause: Cause,
    /// Lower goes first, whatever it is worth: in a rebuild, the copies that are left.
    rank: usize,
    /// The last copy there is: it may use the wide budget.
    is_last_copy: bool,
    worth: f64,
    why: String,
}

/// What is to be done now, given what was seen.
pub fn plan(view: View<'_>, policy: &Policy, memory: &mut Memory) -> Plan {
    let wide = view.health.values().any(|h| at_least(h.score, policy.thresholds.evacuate));
    let mut planning = Planning {
        view,
        policy,
        moving: view.map.segments().filter(|c| c.joining.is_some()).count(),
        moves_max: if wide { policy.moves_wide_max } else { policy.moves_max },
        is_dark: false,
        planned_in: BTreeMap::new(),
        planned_in_bytes: BTreeMap::new(),
        planned_out: BTreeMap::new(),
        ill: BTreeSet::new(),
        plan: Plan::default(),
    };
    planning.look_for_darkness(memory);
    let rebuilds = planning.rebuilds(memory);
    let draining: BTreeSet<ServerId> =
        view.map.servers().filter(|s| s.state == ServerState::Draining).map(|s| s.id).collect();
    let drains = planning.reliefs(&draining, CauseKind::Drain);
    let frozen = planning.is_group_event(memory);
    let ill = planning.relieved(memory, frozen);
    planning.ill.clone_from(&ill);
    let evacuations = if frozen { Vec::new() } else { planning.reliefs(&ill, CauseKind::Score) };
    planning.hand_over(&ill, &draining, frozen, memory);
    for wishes in [rebuilds, evacuations, drains] {
        planning.grant(wishes, memory);
    }
    memory.decided.retain(|_, at| view.now_ms.saturating_sub(*at) < REST_MS);
    planning.plan
}

/// Remembers what a planner would, and decides nothing: for who may have to go on where another
/// planner left off.
pub fn watch(view: View<'_>, policy: &Policy, memory: &mut Memory) {
    let decided = std::mem::take(&mut memory.decided);
    plan(view, policy, memory);
    memory.decided = decided;
}

fn at_least(score: Option<f64>, threshold: f64) -> bool {
    score.is_some_and(|s| s >= threshold)
}

fn weight(criticality: Criticality) -> f64 {
    match criticality {
        Criticality::Low => 0.5,
        Criticality::Normal => 1.0,
        Criticality::High => 2.0,
    }
}

impl<'a> Planning<'a> {
    fn health(&self, server: ServerId) -> Health {
        let unheard = || Health { silent_ms: u64::MAX, ..Health::default() };
        self.view.health.get(&server).cloned().unwrap_or_else(unheard)
    }

    fn is_silent(&self, server: ServerId) -> bool {
        self.health(server).silent_ms >= self.policy.down_after_ms
    }

    /// Many servers that fall silent together are hidden rather than dead, by a partition or a
    /// power cut: copying what they hold would load those that are left, and be for nothing.
    fn look_for_darkness(&mut self, memory: &mut Memory) {
        let policy = self.policy;
        let map = self.view.map;
        let counted: Vec<ServerId> =
            map.servers().filter(|s| s.state != ServerState::Removed).map(|s| s.id).collect();
        let silent_ms = |server: &ServerId| self.health(*server).silent_ms;
        let is_whole = map.segments().all(|c| c.members.len() >= usize::from(c.replicas));
        memory.replaced.retain(|server| silent_ms(server) >= policy.silent_after_ms());
        if is_whole {
            let down = counted.iter().filter(|server| self.is_silent(**server));
            memory.replaced.extend(down.filter(|s| map.segments_of(**s).next().is_none()));
        }
        let hidden: Vec<ServerId> = counted
            .iter()
            .filter(|server| !memory.replaced.contains(server))
            .filter(|s| (policy.silent_after_ms()..policy.dead_after_ms()).contains(&silent_ms(s)))
            .copied()
            .collect();
        let most = (counted.len() * policy.hidden_percent_max / 100).max(1);
        if hidden.len() <= most {
            return;
        }
        let named: Vec<String> = (hidden.iter())
            .map(|id| format!("server {id} for {} s", silent_ms(id) / 1000))
            .collect();
        self.is_dark = true;
        self.plan.waits.push(format!(
            "{} of {} servers are silent ({}): this looks like a partition or a power cut, and \
             rebuilding is frozen but for last copies, until at most {most} of them is silent; \
             those who stay away for {} s, or are removed by an operator, count no more",
            hidden.len(),
            counted.len(),
            named.join(", "),
            policy.dead_after_ms() / 1000
        ));
    }

    /// Whether nothing may be moved there: at risk itself, not heard from, or busy.
    fn is_no_target(&self, server: ServerId) -> bool {
        self.is_at_risk(server) || !self.has_slot(server)
    }

    /// Whether one more may be moved there now.
    fn has_slot(&self, server: ServerId) -> bool {
        let planned = self.planned_in.get(&server).copied().unwrap_or(0);
        planned + self.view.map.slots(server).incoming < smt::placement::IN_SLOTS_MAX
    }

    fn is_at_risk(&self, server: ServerId) -> bool {
        let health = self.health(server);
        let shadow = self.policy.thresholds.shadow;
        self.ill.contains(&server)
            || at_least(health.score, shadow)
            || at_least(health.score_high, shadow)
            || health.silent_ms >= self.policy.silent_after_ms()
    }

    fn is_resting(&self, memory: &Memory, segment: SegmentId) -> bool {
        let decided = memory.decided.get(&segment);
        decided.is_some_and(|at| self.view.now_ms.saturating_sub(*at) < REST_MS)
    }

    fn worth(&self, config: &SegmentConfig, probability: f64) -> f64 {
        let criticality =
            self.view.map.volume(config.volume).map_or(Criticality::Normal, |v| v.criticality);
        let heat = self.view.heat.get(&config.segment).copied().unwrap_or(0);
        let heat = f64::from(u32::try_from(heat).unwrap_or(u32::MAX));
        let blocks = f64::from(config.geometry.segment_blocks.max(1));
        probability * (1.0 + heat) * weight(criticality) / blocks
    }

    /// Segments with too few members, single copies first. A lost member that is only away for a
    /// moment is waited for, and gets its replica back: its old copy is the cheapest start.
    fn rebuilds(&mut self, memory: &mut Memory) -> Vec<Wish<'a>> {
        let mut wishes = Vec::new();
        for config in self.view.map.segments() {
            let wanted = usize::from(config.replicas);
            let have = config.members.len();
            if have >= wanted {
                memory.short_since.remove(&config.segment);
                let whole = memory.whole.entry(config.segment).or_default();
                if !whole.iter().copied().eq(config.members.iter().map(|m| m.server)) {
                    *whole = config.members.iter().map(|m| m.server).collect();
                }
                continue;
            }
            let since = *memory.short_since.entry(config.segment).or_insert(self.view.now_ms);
            let waited_ms = self.view.now_ms.saturating_sub(since);
            if config.joining.is_some() {
                continue;
            }
            let why = format!("{have} of {wanted} replicas are in sync");
            let known = memory.whole.get(&config.segment).map_or(&[][..], Vec::as_slice);
            let is_last_copy = have == 1;
            let rather_to = match self.lost(config, known, waited_ms) {
                Lost::Gone => None,
                Lost::Back(server) => Some(server),
                Lost::Elsewhere if self.is_dark && !is_last_copy => {
                    let name = self.name(config);
                    self.plan.waits.push(format!(
                        "{name}: {why}; waits, so many servers are silent that rebuilding is frozen"
                    ));
                    continue;
                }
                // Right after an eviction its cause may still be shaking other members.
                Lost::Elsewhere if waited_ms >= SETTLE_MS => None,
                Lost::Elsewhere => continue,
                Lost::Away(server) => {
                    let name = self.name(config);
                    self.plan.waits.push(format!(
                        "{name}: {why}; waits for server {server} to come back, {} s at most",
                        self.policy.down_after_ms.div_ceil(1000)
                    ));
                    continue;
                }
            };
            let cause = Cause {
                kind: CauseKind::Rebuild,
                server: None,
                score_hundredths: None,
                mode: None,
            };
            let worth = self.worth(config, 1.0);
            wishes.push(Wish {
                config,
                from: None,
                rather_to,
                cause,
                rank: have,
                is_last_copy,
                worth,
                why,
            });
        }
        let map = self.view.map;
        memory.short_since.retain(|segment, _| map.segment(*segment).is_some());
        memory.whole.retain(|segment, _| map.segment(*segment).is_some());
        wishes
    }

    /// What has become of the member that `config` lacks. `known` are its members when it was
    /// whole; none if this planner never saw it whole (a new leader), and then any server that has
    /// just fallen silent may be the one.
    fn lost(&self, config: &SegmentConfig, known: &[ServerId], waited_ms: u64) -> Lost {
        let mut fate = Lost::Elsewhere;
        for server in self.view.map.servers().filter(|s| !config.is_member(s.id)) {
            let is_known = known.contains(&server.id);
            let is_removed = server.state == ServerState::Removed;
            if is_removed && is_known {
                return Lost::Gone;
            }
            if is_removed || !(is_known || known.is_empty()) {
                continue;
            }
            let silent_ms = self.health(server.id).silent_ms;
            // Two missed words: one may be late on a busy machine.
            let is_away = if is_known { silent_ms >= waited_ms } else { silent_ms >= SETTLE_MS };
            if is_away && silent_ms < self.policy.down_after_ms {
                return Lost::Away(server.id);
            }
            if is_known && !is_away && !self.is_at_risk(server.id) {
                fate = Lost::Back(server.id);
            }
        }
        fate
    }

    /// A segment as people name it.
    fn name(&self, config: &SegmentConfig) -> String {
        let volume = self.view.map.volume(config.volume);
        let volume = volume.map_or_else(|| config.volume.to_string(), |v| v.name.clone());
        format!("{volume}/{}", config.index)
    }

    /// Every replica of these servers is to leave.
    fn reliefs(&mut self, servers: &BTreeSet<ServerId>, kind: CauseKind) -> Vec<Wish<'a>> {
        let mut wishes = Vec::new();
        for &server in servers {
            let health = self.health(server);
            // A drain has no probability of its own: the operator wants it.
            let probability = match kind {
                CauseKind::Score => health.probability.unwrap_or(1.0),
                CauseKind::Operator
                | CauseKind::Drain
                | CauseKind::Rebuild
                | CauseKind::Balance => 1.0,
            };
            let score_hundredths = health.score.map(hundredths);
            let mode = health.mode.clone();
            let cause = Cause {
                kind,
                server: Some(server),
                score_hundredths: score_hundredths.filter(|_| kind == CauseKind::Score),
                mode: mode.filter(|_| kind == CauseKind::Score),
            };
            for config in self.view.map.segments().filter(|c| c.is_member(server)) {
                if config.joining.is_some() {
                    continue;
                }
                let why = match kind {
                    CauseKind::Score => format!(
                        "server {server} scores {:.0} ({})",
                        health.score.unwrap_or_default(),
                        health.mode.as_deref().unwrap_or("no mode")
                    ),
                    CauseKind::Operator
                    | CauseKind::Drain
                    | CauseKind::Rebuild
                    | CauseKind::Balance => format!("server {server} is being drained"),
                };
                let worth = self.worth(config, probability);
                wishes.push(Wish {
                    config,
                    from: Some(server),
                    rather_to: None,
                    cause: cause.clone(),
                    rank: 0,
                    is_last_copy: false,
                    worth,
                    why,
                });
            }
        }
        wishes
    }

    /// Many servers falling ill together is not a disk's fault: moving would make it worse.
    fn is_group_event(&mut self, memory: &mut Memory) -> bool {
        let shadow = self.policy.thresholds.shadow;
        let servers: Vec<ServerId> = self
            .view
            .map
            .servers()
            .filter(|s| s.state != ServerState::Removed)
            .map(|s| s.id)
            .collect();
        for &server in &servers {
            let above = at_least(self.health(server).score, shadow);
            if above && memory.above.insert(server) {
                memory.crossed.insert(server, self.view.now_ms);
            } else if !above {
                memory.above.remove(&server);
            }
        }
        let lately = memory
            .above
            .iter()
            .filter_map(|s| memory.crossed.get(s))
            .filter(|at| self.view.now_ms.saturating_sub(**at) <= self.policy.group_ms)
            .count();
        let is_group = servers.len() >= self.policy.group_servers_min
            && lately >= 2
            && lately * 2 > servers.len();
        if is_group {
            self.plan.waits.push(format!(
                "group event: {lately} of {} servers crossed {shadow:.0} together; nothing moves \
                 because of a score until somebody has looked",
                servers.len()
            ));
        }
        is_group
    }

    /// The servers to be relieved because of their score, with hysteresis and the brake.
    fn relieved(&mut self, memory: &mut Memory, frozen: bool) -> BTreeSet<ServerId> {
        let shift = self.policy.thresholds.shift;
        let count = self.view.map.servers().filter(|s| s.state != ServerState::Removed).count();
        let most = (count * self.policy.relieved_percent_max / 100).max(1);
        let now = self.view.now_ms;
        let mut over = Vec::new();
        memory.relieved.retain(|server, low_since| {
            let score = self.view.health.get(server).and_then(|h| h.score);
            // Unknown is what an emptied, idle server becomes: not a reason to go on.
            let low = score.is_none_or(|s| s < shift - self.policy.leave_points);
            if !low {
                *low_since = None;
                return true;
            }
            let since = *low_since.get_or_insert(now);
            now.saturating_sub(since) < self.policy.hold_ms
        });
        for (&server, health) in self.view.health {
            if at_least(health.score, shift) && !memory.relieved.contains_key(&server) {
                over.push((server, health.score.unwrap_or_default()));
            }
        }
        over.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (server, score) in over {
            if frozen {
                continue;
            }
            if memory.relieved.len() >= most {
                self.plan.waits.push(format!(
                    "server {server} scores {score:.0}, but {most} of {count} servers are being \
                     relieved already"
                ));
                continue;
            }
            memory.relieved.insert(server, None);
        }
        memory.relieved.keys().copied().collect()
    }

    /// S3b: primaries leave a relieved server without a copy, where a healthy member can lead.
    fn hand_over(
        &mut self,
        ill: &BTreeSet<ServerId>,
        draining: &BTreeSet<ServerId>,
        frozen: bool,
        memory: &mut Memory,
    ) {
        for config in self.view.map.segments() {
            let from = config.primary;
            let wanted = (ill.contains(&from) && !frozen) || draining.contains(&from);
            if !wanted
                || config.transfer.is_some()
                || config.joining.is_some()
                || config.active < config.epoch
                || self.is_resting(memory, config.segment)
            {
                continue;
            }
            let heir = config.members.iter().map(|m| m.server).find(|&s| {
                s != from
                    && !ill.contains(&s)
                    && !draining.contains(&s)
                    && !at_least(self.health(s).score, self.policy.thresholds.shadow)
                    && self.health(s).silent_ms < self.policy.silent_after_ms()
            });
            if let Some(server) = heir {
                memory.decided.insert(config.segment, self.view.now_ms);
                let (segment, expect) = (config.segment, config.epoch);
                self.plan.decisions.push(Decision {
                    command: Command::RequestTransfer { segment, expect, server },
                    why: format!("server {from} is being relieved, {server} has the data"),
                });
            }
        }
    }

    /// Turns wishes into migrations, the most worth first, as far as the brakes allow.
    fn grant(&mut self, mut wishes: Vec<Wish<'a>>, memory: &mut Memory) {
        wishes.sort_by(|a, b| {
            let by_worth = b.worth.total_cmp(&a.worth);
            a.rank.cmp(&b.rank).then(by_worth).then(a.config.segment.cmp(&b.config.segment))
        });
        for Wish { config, from, rather_to, cause, rank: _, is_last_copy, worth: _, why } in wishes
        {
            let what = self.name(config);
            if let Some(heir) = config.transfer {
                self.plan.waits.push(format!(
                    "{what}: {why}; waits for server {} to hand over to server {heir}",
                    config.primary
                ));
                continue;
            }
            if self.is_resting(memory, config.segment) {
                continue;
            }
            let wide_max = if is_last_copy { self.policy.moves_wide_max } else { 0 };
            if self.moving >= self.moves_max.max(wide_max) {
                self.plan.waits.push(format!(
                    "{what}: {why}; waits, {} migrations are under way",
                    self.moving
                ));
                continue;
            }
            // Its turn comes sooner than a whole copy is made elsewhere.
            if let Some(server) = rather_to.filter(|server| !self.has_slot(*server)) {
                self.plan.waits.push(format!(
                    "{what}: {why}; waits for its turn at server {server} which has an old copy"
                ));
                continue;
            }
            if let Some(server) = from {
                let out = self.planned_out.get(&server).copied().unwrap_or(0)
                    + self.view.map.slots(server).outgoing;
                if out >= smt::placement::OUT_SLOTS_MAX {
                    self.plan.waits.push(format!(
                        "{what}: {why}; waits, {out} migrations leave server {server} already"
                    ));
                    continue;
                }
            }
            if self.is_silent(config.primary) {
                self.plan.waits.push(format!(
                    "{what}: {why}; waits for its primary, server {}",
                    config.primary
                ));
                continue;
            }
            let bytes = u64::from(config.geometry.segment_blocks) * smt::BLOCK_BYTES;
            let map = self.view.map;
            let excluded = |server: ServerId| {
                let planned = self.planned_in_bytes.get(&server).copied().unwrap_or(0);
                self.is_no_target(server) || map.free_bytes(server) < planned.saturating_add(bytes)
            };
            let choose = |excluded: &dyn Fn(ServerId) -> bool| {
                choose_target_replacing(map, config.segment, from, excluded)
            };
            let returned = rather_to
                .and_then(|rather| choose(&|server| server != rather || excluded(server)).ok());
            match returned.map_or_else(|| choose(&excluded), Ok) {
                Ok(to) => {
                    *self.planned_in_bytes.entry(to).or_default() += bytes;
                    self.moving += 1;
                    *self.planned_in.entry(to).or_default() += 1;
                    if let Some(server) = from {
                        *self.planned_out.entry(server).or_default() += 1;
                    }
                    memory.decided.insert(config.segment, self.view.now_ms);
                    self.plan.decisions.push(Decision {
                        command: Command::StartMigration {
                            segment: config.segment,
                            expect: config.epoch,
                            from,
                            to,
                            cause,
                            at_unix_ms: 0,
                            bytes_per_second_max: None,
                        },
                        why: format!("{what} to server {to}: {why}"),
                    });
                }
                Err(reason) => self.plan.waits.push(format!("{what}: {why}; {reason}")),
            }
        }
    }
}

/// A score of 0 to 100 in hundredths: the map holds no floats.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=10,000 and rounded before"
)]
fn hundredths(score: f64) -> u32 {
    (score.clamp(0.0, 100.0) * 100.0).round() as u32
}
