//! A small cluster to plan for: its map, its scores, and the passing of time.

use std::collections::{BTreeMap, BTreeSet};

use migrator::{Decision, Health, Memory, Plan, Policy, View, plan};
use smt::map::{
    CauseKind, Command, CopyProgress, Criticality, Durability, Map, Refused, Reply, Server,
    ServerState,
};
use smt::{Epoch, Incarnation, SegmentId, Seq, ServerId, Settings};

pub const SEGMENT_BYTES: u64 = 1 << 20;
pub const SECOND_MS: u64 = 1_000;
pub const HOUR_MS: u64 = 3_600_000;

/// A cluster at a moment, and a planner that watches it.
pub struct World {
    pub map: Map,
    pub health: BTreeMap<ServerId, Health>,
    pub heat: BTreeMap<SegmentId, u64>,
    pub now_ms: u64,
    pub policy: Policy,
    pub memory: Memory,
}

impl World {
    /// `servers` servers, each in a zone of its own with room for `room_segments`.
    pub fn new(servers: u64, room_segments: u64) -> World {
        let mut world = World {
            map: Map::new(),
            health: BTreeMap::new(),
            heat: BTreeMap::new(),
            now_ms: HOUR_MS,
            policy: Policy::default(),
            memory: Memory::default(),
        };
        for id in 1..=servers {
            world.register(id, 1, room_segments);
            world.health.insert(ServerId(id), heard(None));
        }
        world
    }

    pub fn apply(&mut self, command: &Command) -> Result<Reply, Refused> {
        let version = self.map.version().next();
        self.map.apply(version, command, &Settings::default())
    }

    #[track_caller]
    pub fn must(&mut self, command: &Command) {
        self.apply(command).expect("the map takes it");
    }

    pub fn register(&mut self, id: u64, incarnation: u64, room_segments: u64) {
        // Twice the room, of which placement uses 85 %: the soft limit stays out of the way.
        let capacity_bytes = room_segments * SEGMENT_BYTES * 2;
        self.must(&Command::RegisterServer(Server {
            id: ServerId(id),
            store: u128::from(id),
            incarnation: Incarnation(incarnation),
            state: ServerState::Up,
            address: format!("127.0.0.1:{}", 7000 + id),
            http: format!("127.0.0.1:{}", 8000 + id),
            zone: format!("zone-{id}"),
            region: "local".to_owned(),
            tier: "ssd".to_owned(),
            capacity_bytes,
            boot_id: "boot".to_owned(),
        }));
    }

    /// A volume whose primaries all serve.
    pub fn volume(&mut self, name: &str, segments: u64, replicas: u8, criticality: Criticality) {
        self.must(&Command::CreateVolume {
            name: name.to_owned(),
            size_bytes: segments * SEGMENT_BYTES,
            segment_bytes: SEGMENT_BYTES,
            replicas,
            criticality,
            durability: Durability::WriteThrough,
        });
        self.serve();
    }

    /// Every primary reports that it serves.
    pub fn serve(&mut self) {
        let idle: Vec<(SegmentId, Epoch)> = self
            .map
            .segments()
            .filter(|c| c.active < c.epoch)
            .map(|c| (c.segment, c.epoch))
            .collect();
        for (segment, epoch) in idle {
            self.must(&Command::Active { segment, epoch, writer_pause_us: 0 });
        }
    }

    pub fn state(&mut self, server: u64, state: ServerState) {
        self.must(&Command::SetServerState { server: ServerId(server), state });
    }

    pub fn score(&mut self, server: u64, score: f64) {
        self.health.insert(ServerId(server), heard(Some(score)));
    }

    pub fn silence(&mut self, server: u64, silent_ms: u64) {
        self.health.insert(ServerId(server), Health { silent_ms, ..heard(None) });
    }

    pub fn look(&mut self) -> Plan {
        let view =
            View { map: &self.map, health: &self.health, heat: &self.heat, now_ms: self.now_ms };
        plan(view, &self.policy, &mut self.memory)
    }

    /// Looks as a planner does that does not lead.
    pub fn only_watch(&mut self) {
        let view =
            View { map: &self.map, health: &self.health, heat: &self.heat, now_ms: self.now_ms };
        migrator::watch(view, &self.policy, &mut self.memory);
    }

    pub fn later(&mut self, ms: u64) -> Plan {
        self.now_ms += ms;
        self.look()
    }

    /// Ten seconds of looking, once a second: what was decided in them, nothing carried out.
    pub fn watch(&mut self, seconds: u64) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for _ in 0..seconds {
            decisions.extend(self.later(SECOND_MS).decisions);
        }
        decisions
    }

    /// Looks once a second, and has done what is decided; no copy ends.
    pub fn act(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for decision in self.later(SECOND_MS).decisions {
                self.must(&decision.command);
            }
        }
    }

    pub fn evict(&mut self, segment: SegmentId, server: ServerId) {
        let config = self.map.segment(segment).expect("it exists").clone();
        let expect = config.epoch;
        if config.primary == server {
            let heir = config.members.iter().map(|m| m.server).find(|s| *s != server);
            let server = heir.expect("another member is left");
            self.must(&Command::NewPrimary { segment, expect, server });
        } else {
            self.must(&Command::Evict { segment, expect, server });
        }
        self.serve();
    }

    /// Takes a server out of every segment it shares with another.
    pub fn evict_everywhere(&mut self, server: u64) -> BTreeSet<SegmentId> {
        let server = ServerId(server);
        let shared: BTreeSet<SegmentId> = self
            .map
            .segments()
            .filter(|c| c.is_member(server) && c.members.len() > 1)
            .map(|c| c.segment)
            .collect();
        for &segment in &shared {
            self.evict(segment, server);
        }
        shared
    }

    /// Ends every migration under way, as its primary would.
    pub fn finish_migrations(&mut self) {
        let joining: Vec<Command> = self
            .map
            .segments()
            .filter_map(|c| {
                c.joining.map(|joining| Command::Promote {
                    segment: c.segment,
                    expect: c.epoch,
                    migration: joining.migration,
                    digest: 1,
                    seq: Seq(1),
                    progress: CopyProgress::default(),
                    at_unix_ms: self.now_ms,
                })
            })
            .collect();
        for promote in &joining {
            self.must(promote);
        }
        self.serve();
    }

    /// Hands over every segment whose primary was asked to.
    pub fn finish_transfers(&mut self) {
        let wished: Vec<Command> = self
            .map
            .segments()
            .filter_map(|c| {
                let server = c.transfer?;
                Some(Command::Transfer { segment: c.segment, expect: c.epoch, server })
            })
            .collect();
        for transfer in &wished {
            self.must(transfer);
        }
        self.serve();
    }
}

pub fn heard(score: Option<f64>) -> Health {
    Health {
        score,
        score_high: score.map(|s| (s + 5.0).min(100.0)),
        probability: score.map(|s| s / 100.0),
        mode: score.filter(|s| *s >= 20.0).map(|_| "fail_slow".to_owned()),
        silent_ms: 0,
    }
}

/// A migration that a plan starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    pub segment: SegmentId,
    pub from: Option<ServerId>,
    pub to: ServerId,
    pub kind: CauseKind,
    pub cause_server: Option<ServerId>,
    pub score_hundredths: Option<u32>,
    pub mode: Option<String>,
}

pub fn moves(decisions: &[Decision]) -> Vec<Move> {
    decisions
        .iter()
        .filter_map(|decision| match &decision.command {
            Command::StartMigration { segment, from, to, cause, .. } => Some(Move {
                segment: *segment,
                from: *from,
                to: *to,
                kind: cause.kind,
                cause_server: cause.server,
                score_hundredths: cause.score_hundredths,
                mode: cause.mode.clone(),
            }),
            _ => None,
        })
        .collect()
}

pub fn transfers(decisions: &[Decision]) -> Vec<(SegmentId, ServerId)> {
    decisions
        .iter()
        .filter_map(|decision| match &decision.command {
            Command::RequestTransfer { segment, server, .. } => Some((*segment, *server)),
            _ => None,
        })
        .collect()
}

pub fn says(plan: &Plan, words: &[&str]) -> bool {
    plan.waits.iter().any(|wait| words.iter().all(|word| wait.contains(word)))
}

/// Four servers, eight segments in two replicas.
pub fn four_servers() -> World {
    let mut world = World::new(4, 64);
    world.volume("vol0", 8, 2, Criticality::Normal);
    world
}
