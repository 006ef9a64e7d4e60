//! A cluster on one noisy machine, as its telemetry would show it, one second at a time.
//!
//! Invariant: everything follows from the seed. What is injected changes latencies and counters
//! only; nobody tells the score about it.

use pfm::{Config, LatencyBucketSummary, Pfm, Sample, Score};

/// xorshift64*: enough randomness for noise, and no crate.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.uniform();
        }
        random
    }

    /// Between 0 and 1, neither included.
    pub fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        (bits as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// An operation's latency around `median_us`: lognormal, and one in fifty has a Pareto tail
    /// from ten times up, as p99 is here (FACTS).
    fn latency_us(&mut self, median_us: f64) -> f64 {
        let usual = median_us * (0.5 * self.normal()).exp();
        if self.chance(0.02) {
            usual * 10.0 * self.uniform().powf(-1.0 / 1.5).min(50.0)
        } else {
            usual
        }
    }
}

/// What clients ask for. Operations per server and second, and the medians they usually meet.
#[derive(Clone, Copy)]
pub struct Load {
    pub reads: f64,
    pub writes: f64,
    pub read_us: f64,
    pub write_us: f64,
}

pub const LIGHT: Load = Load { reads: 12.0, writes: 6.0, read_us: 150.0, write_us: 250.0 };
pub const ORDINARY: Load = Load { reads: 250.0, writes: 120.0, read_us: 400.0, write_us: 900.0 };
pub const HEAVY: Load = Load { reads: 2_500.0, writes: 900.0, read_us: 2_000.0, write_us: 3_500.0 };
pub const IDLE: Load = Load { reads: 0.0, writes: 0.0, read_us: 150.0, write_us: 250.0 };
/// Slower disks: 5 ms is usual.
pub const SPINNING: Load = Load { reads: 40.0, writes: 40.0, read_us: 5_000.0, write_us: 5_000.0 };

/// What happens to one server's disk.
#[derive(Clone, Copy, Default)]
pub struct Fault {
    pub added_us: f64,
    /// 0 means unchanged.
    pub times: f64,
    pub errors: u64,
}

struct Server {
    pfm: Pfm,
    /// Slow drift of this server's latency, ln.
    drift: f64,
    /// This server's part of the load.
    share: f64,
    stall: Option<(u64, f64)>,
}

pub struct Cluster {
    pub random: Random,
    pub now_s: u64,
    servers: Vec<Server>,
    drift: f64,
    cpu: f64,
    /// Everything on the machine is this much slower now.
    pub common_times: f64,
    /// Only server 1 is asked for reads.
    pub only_one_reads: bool,
}

impl Cluster {
    pub fn new(seed: u64, servers: u64) -> Self {
        let mut random = Random::new(seed);
        let servers = (1..=servers)
            .map(|server| Server {
                pfm: Pfm::new(Config { server, ..Config::default() }),
                drift: 0.0,
                share: 0.5 + 1.5 * random.uniform(),
                stall: None,
            })
            .collect();
        Self {
            random,
            now_s: 1_800_000_000,
            servers,
            drift: 0.0,
            cpu: 0.0,
            common_times: 1.0,
            only_one_reads: false,
        }
    }

    /// One second for everybody; `fault` is server 1's. Peers hear of it a second later.
    pub fn second(&mut self, load: &Load, fault: &Fault) {
        self.now_s += 1;
        let random = &mut self.random;
        self.drift = 0.9 * self.drift + 0.13 * random.normal();
        self.cpu = (0.95 * self.cpu + 1.0 + 4.0 * random.normal()).clamp(0.0, 100.0);
        let mut said = Vec::with_capacity(self.servers.len());
        for (index, server) in self.servers.iter_mut().enumerate() {
            let quiet = Fault::default();
            let fault = if index == 0 { fault } else { &quiet };
            server.drift = 0.95 * server.drift + 0.08 * random.normal();
            server.stall = match server.stall {
                Some((until_s, _)) if until_s <= self.now_s => None,
                Some(stall) => Some(stall),
                None if random.chance(1.0 / 200.0) => {
                    let seconds = if random.chance(0.1) { 6 } else { 2 };
                    Some((self.now_s + seconds, 5.0 + 25.0 * random.uniform()))
                }
                None => None,
            };
            let stalled = server.stall.map_or(1.0, |(_, times)| times);
            let times = (self.drift + server.drift).exp() * self.common_times * stalled;
            let times = times * if fault.times > 0.0 { fault.times } else { 1.0 };
            let asked = index == 0 || !self.only_one_reads;
            let reads = if asked { load.reads * server.share } else { 0.0 };
            let reads = (reads, load.read_us);
            let writes = (load.writes * server.share, load.write_us);
            let sample = Sample {
                at_s: self.now_s,
                series: 1,
                reads: operations(random, reads, times, fault),
                writes: operations(random, writes, times, fault),
                psi_cpu_some_avg10: self.cpu,
                psi_io_some_avg10: self.cpu,
                io_errors: fault.errors,
                ..Sample::default()
            };
            let sample = Sample {
                bytes_read: sample.reads.count * 4_096,
                bytes_written: sample.writes.count * 4_096,
                queue_depth_mean: sample.ops() as f64 / 1_000.0,
                ..sample
            };
            server.pfm.observe(sample);
            said.extend(server.pfm.summary());
        }
        for server in &mut self.servers {
            for summary in &said {
                server.pfm.observe_peer(summary.clone());
            }
        }
    }

    /// Server `id`'s score now (1 is the first).
    pub fn score(&mut self, id: usize) -> Score {
        let now_s = self.now_s;
        self.servers[id - 1].pfm.score(now_s)
    }

    pub fn pfm(&mut self, id: usize) -> &mut Pfm {
        &mut self.servers[id - 1].pfm
    }

    pub fn highest(&mut self) -> f64 {
        (1..=self.servers.len()).filter_map(|id| self.score(id).score).fold(0.0, f64::max)
    }
}

/// A second of one kind: (operations, median in µs). Clients with so many requests in flight get
/// fewer answers from a slower server.
fn operations(
    random: &mut Random,
    (wanted, median_us): (f64, f64),
    times: f64,
    fault: &Fault,
) -> LatencyBucketSummary {
    if wanted <= 0.0 {
        return LatencyBucketSummary::default();
    }
    let in_flight = (wanted * median_us / 1e6).max(0.5);
    let possible = in_flight * 1e6 / (median_us * times + fault.added_us);
    let wanted = wanted.min(possible) * (0.3 * random.normal()).exp();
    let count = count_of(wanted + random.uniform());
    if count == 0 {
        return LatencyBucketSummary::default();
    }
    let mut draws: Vec<f64> =
        (0..count.min(21)).map(|_| random.latency_us(median_us * times) + fault.added_us).collect();
    draws.sort_by(f64::total_cmp);
    LatencyBucketSummary {
        count,
        p50_us: count_of(draws[draws.len() / 2]),
        p99_us: count_of(draws[draws.len() - 1]),
        mean_us: count_of(draws.iter().sum::<f64>() / draws.len() as f64),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "simulated counts and µs are small and not negative"
)]
fn count_of(value: f64) -> u64 {
    value as u64
}
