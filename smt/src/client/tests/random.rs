//! Whatever the network does: every operation completes once, its effects are those of writes in
//! the order of their locks, and nothing is left over.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// Three servers that share one disk, of which each segment's primary alone serves. Connections
/// are queues, whose contents are lost when they fall.
struct World {
    bench: Bench,
    disk: BTreeMap<u64, u64>,
    configs: Vec<SegmentConfig>,
    version: u64,
    /// By server: the session, and what is on its way there and back.
    wires: BTreeMap<u64, Wire>,
    next_session: u64,
    /// What each write in flight puts where, by operation.
    writes: BTreeMap<u64, (u64, Vec<u64>)>,
    /// What each block was when it last was certain, and what it may be since.
    may_be: BTreeMap<u64, Vec<u64>>,
    reads: BTreeMap<u64, BTreeMap<u64, Vec<u64>>>,
    next_op: u64,
    pulled: bool,
    completed: u64,
}

#[derive(Default)]
struct Wire {
    session: u64,
    there: VecDeque<Request>,
    back: VecDeque<ClientReply<Blocks>>,
}

const BLOCKS: u64 = 32;

impl World {
    fn new() -> World {
        let settings =
            ClientSettings { piece_blocks_max: 3, window: 2, ..ClientSettings::default() };
        let mut world = World {
            bench: Bench::unlinked(settings, false),
            disk: (0..BLOCKS).map(|block| (block, 0)).collect(),
            configs: vec![config(1, 1, 1), config(2, 1, 2), config(3, 1, 1), config(4, 1, 2)],
            version: 10,
            wires: BTreeMap::new(),
            next_session: 1,
            writes: BTreeMap::new(),
            may_be: (0..BLOCKS).map(|block| (block, vec![0])).collect(),
            reads: BTreeMap::new(),
            next_op: 1,
            pulled: false,
            completed: 0,
        };
        for server in 1..=3 {
            world.connect(server);
        }
        world
    }

    fn connect(&mut self, server: u64) {
        if self.wires.contains_key(&server) {
            return;
        }
        let session = self.next_session;
        self.next_session += 1;
        self.wires.insert(server, Wire { session, ..Wire::default() });
        self.bench.up(server, session);
        self.look();
    }

    fn cut(&mut self, server: u64) {
        if let Some(wire) = self.wires.remove(&server) {
            self.bench.down(server, wire.session);
            self.look();
        }
    }

    fn change(&mut self, segment: usize, primary: u64, told: bool) {
        self.version += 1;
        let config = &mut self.configs[segment];
        config.epoch = config.epoch.next();
        config.primary = ServerId(primary);
        let config = config.clone();
        if told {
            self.bench.delta(self.version - 1, self.version, vec![config]);
            self.look();
        }
    }

    fn begin(&mut self, what: u8, first: u64, count: u64) {
        let op = self.next_op;
        self.next_op += 1;
        let count = count.min(BLOCKS - first);
        match what {
            0 | 1 => {
                let values: Vec<u64> =
                    (0..count).map(|i| if what == 0 { 0 } else { op * 100 + i }).collect();
                // A write in flight may be seen by every read that is in flight with it.
                for (block, value) in (first..).zip(&values) {
                    self.may_be.get_mut(&block).expect("inside").push(*value);
                    for seen in self.reads.values_mut() {
                        if let Some(seen) = seen.get_mut(&block) {
                            seen.push(*value);
                        }
                    }
                }
                self.writes.insert(op, (first, values.clone()));
                if what == 0 {
                    self.bench.submit(op, VolumeRequest::Zero { first_block: first, count });
                } else {
                    self.bench.write(op, first, &values);
                }
            }
            2 => {
                let seen = (first..first + count).map(|b| (b, self.may_be[&b].clone())).collect();
                self.reads.insert(op, seen);
                self.bench.read(op, first, u32::try_from(count).expect("small"));
            }
            _ => self.bench.submit(op, VolumeRequest::Flush),
        }
        self.look();
    }

    /// The hands: puts what was sent on its wire, and judges what completed.
    fn look(&mut self) {
        for action in std::mem::take(&mut self.bench.actions) {
            match action {
                ClientAction::Send { server, session, request } => {
                    let wire = self.wires.get_mut(&server.0).expect("it knows which links are up");
                    assert_eq!(wire.session, session.0);
                    wire.there.push_back(request);
                }
                ClientAction::Complete { op, result } => {
                    self.completed += 1;
                    self.judge(op.0, &result);
                }
                ClientAction::Pull => self.pulled = true,
                ClientAction::Granted { .. } => {}
            }
        }
    }

    fn judge(&mut self, op: u64, result: &OpResult<Blocks>) {
        if let Some((first, values)) = self.writes.remove(&op) {
            assert_eq!(*result, OpResult::Done);
            // The lock lets one write at a time have a block: what it holds is certain now, but
            // for the writes submitted after it, which are not through.
            for (block, value) in (first..).zip(values) {
                assert_eq!(self.disk[&block], value, "block {block} after write {op}");
                let later = self.writes.values().filter_map(|(first, values)| {
                    let at = block.checked_sub(*first)?;
                    values.get(usize::try_from(at).expect("small")).copied()
                });
                let may_be = std::iter::once(value).chain(later).collect();
                self.may_be.insert(block, may_be);
            }
        } else if let Some(seen) = self.reads.remove(&op) {
            let OpResult::Data(runs) = result else {
                // Only by bad luck with the rot below.
                assert_eq!(*result, OpResult::Failed(ClientError::Io), "read {op}");
                assert!(self.bench.client.mismatches() >= 3);
                return;
            };
            let mut blocks = Vec::new();
            for (first, data) in runs {
                for (block, value) in (*first..).zip(&data.0) {
                    assert!(seen[&block].contains(value), "block {block} read as {value}");
                    blocks.push(block);
                }
            }
            assert_eq!(blocks, seen.keys().copied().collect::<Vec<u64>>());
        } else {
            assert_eq!(*result, OpResult::Done, "a flush");
        }
    }

    /// A server takes one request off its wire.
    fn serve(&mut self, server: u64, mood: u8) {
        let Some(request) = self.wires.get_mut(&server).and_then(|w| w.there.pop_front()) else {
            return;
        };
        let at = self.configs.iter().find(|c| c.segment == request.segment);
        let config = at.expect("segments stay").clone();
        let base = u64::from(config.index) * u64::from(SEGMENT_BLOCKS);
        let range = range_of(&request);
        let blocks = || range.blocks().map(|b| base + u64::from(b));
        let body = if config.primary.0 != server || request.epoch < config.epoch {
            ReplyBody::Stale { config }
        } else if mood == 0 {
            ReplyBody::Retry { after_ns: MS }
        } else {
            match &request.body {
                RequestBody::Read { .. } => {
                    let values: Vec<u64> = blocks().map(|b| self.disk[&b]).collect();
                    match data(&request, &values) {
                        ReplyBody::Data { mut data, sums } if mood == 1 => {
                            // Rot on the way, but rarely three times for one read.
                            data.0[0] ^= 1 << 40;
                            ReplyBody::Data { data, sums }
                        }
                        good => good,
                    }
                }
                RequestBody::Write { data, sums, range } => {
                    assert_eq!(*sums, sums_of(data, request.segment, range.first));
                    self.disk.extend(blocks().zip(data.0.iter().copied()));
                    ReplyBody::Done
                }
                RequestBody::Zero { .. } => {
                    self.disk.extend(blocks().map(|b| (b, 0)));
                    ReplyBody::Done
                }
                RequestBody::Flush | RequestBody::Fence => ReplyBody::Done,
            }
        };
        let reply = ClientReply { op: request.op, segment: request.segment, body };
        if let Some(wire) = self.wires.get_mut(&server) {
            wire.back.push_back(reply);
        }
    }

    fn deliver(&mut self, server: u64) {
        let Some(wire) = self.wires.get_mut(&server) else {
            return;
        };
        let Some(reply) = wire.back.pop_front() else {
            return;
        };
        let (server, session) = (ServerId(server), Session(wire.session));
        self.bench.handle(ClientEvent::Reply { server, session, reply });
        self.look();
    }

    /// The map answers a pull.
    fn tell(&mut self) {
        if std::mem::take(&mut self.pulled) {
            self.bench.delta(0, self.version, self.configs.clone());
            self.look();
        }
    }

    /// The network heals; everything has to come to its end.
    fn settle(&mut self) {
        for server in 1..=3 {
            self.connect(server);
        }
        for _ in 0..4_000 {
            if self.bench.client.is_idle() && self.bench.client.next_wake().is_none() {
                break;
            }
            for server in 1..=3 {
                self.serve(server, 9);
                self.deliver(server);
            }
            self.bench.pass(2);
            self.look();
            self.tell();
        }
        assert!(self.writes.is_empty() && self.reads.is_empty());
        assert_eq!(self.completed, self.next_op - 1, "each operation completes, and once");
        self.bench.idle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_completes_once_and_as_if_in_order(
        steps in proptest::collection::vec((0_u8..16, 0_u64..32, 1_u64..12, 0_u8..12), 1..150)
    ) {
        let mut world = World::new();
        for (what, place, length, mood) in steps {
            let server = 1 + place % 3;
            match what {
                0..=4 => world.begin(mood % 4, place, length),
                5..=9 => world.serve(server, mood.max(1)),
                10 => world.serve(server, 0),
                11 | 12 => world.deliver(server),
                13 => world.cut(server),
                14 => {
                    let segment = usize::try_from(length % 4).expect("small");
                    world.change(segment, server, mood % 2 == 0);
                }
                _ => {
                    world.connect(server);
                    world.bench.pass(u64::from(mood) * 40);
                    world.look();
                    world.tell();
                }
            }
        }
        world.settle();
    }
}
