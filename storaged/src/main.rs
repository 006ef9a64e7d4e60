//! The storaged binary: opens everything, starts the data plane and the control plane, and ends
//! both in good order.
//!
//! `storaged recovery …` is what `petrel cluster …` runs, on a directory at rest.
//!
//! Exit codes: 0 stopped as asked, 1 failed, 2 a bad configuration, 3 refused by the data
//! directory or by the cluster.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use clap::Parser;
use reactor::{Address, Reactor, ReactorConfig, boot_time};
use smt::map::Map;
use smt::server::Server;
use smt::{ServerId, Settings, Tick};
use storaged::config::{Config, Flags};
use storaged::control::{self, ControlError, Inputs};
use storaged::disk::{DataDir, Disk, DiskError, DiskOptions, Faults, Syncer, note_refusal};
use storaged::scrub::{Line, ScrubConfig, Scrubber};
use storaged::shard::{Identity, Observer, Outlets, Shard, Signals, Traffic};
use storaged::telemetry::latency::IoStats;
use tokio::sync::{mpsc, watch};
use xxhash_rust::xxh3::xxh3_64;

/// Worker threads of the control plane.
const CONTROL_THREADS: usize = 2;

/// Refused: the data directory or the cluster will not have this server.
const REFUSED: u8 = 3;

fn main() -> ExitCode {
    die_whole();
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "recovery") {
        return ExitCode::from(storaged::recovery::run(arguments));
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("PETREL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let config = match Config::load(Flags::parse()) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            return ExitCode::from(2);
        }
    };
    let directory = config.data_dir.clone();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if let Some(ControlError::Refused(why)) = error.downcast_ref()
                && let Err(error) = note_refusal(&directory, &why.to_string())
            {
                tracing::error!("{:#}", anyhow::Error::from(error));
            }
            let by_disk = matches!(
                error.downcast_ref(),
                Some(
                    DiskError::Locked { .. }
                        | DiskError::OtherServer { .. }
                        | DiskError::OtherCluster { .. }
                        | DiskError::NoIdentity { .. }
                        | DiskError::Refused { .. }
                )
            );
            let by_cluster = matches!(
                error.downcast_ref(),
                Some(
                    ControlError::Refused(_)
                        | ControlError::OtherCluster { .. }
                        | ControlError::LogLost { .. }
                )
            );
            let refused = by_disk || by_cluster;
            if refused { ExitCode::from(REFUSED) } else { ExitCode::FAILURE }
        }
    }
}

/// A thread that panics takes the process with it: a server without its data plane, or without its
/// control plane, must look dead to its peers and to whoever restarts it.
fn die_whole() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
}

/// The cluster's id as the first start makes it, where nobody gave one: from the servers that
/// found it.
fn founded_cluster(config: &Config) -> u64 {
    let mut peers: Vec<String> =
        config.peers.iter().map(|p| format!("{}={},{}", p.id, p.data, p.http)).collect();
    peers.sort();
    smt::lineage::founded(xxh3_64(peers.join(";").as_bytes()))
}

fn run(config: Config) -> anyhow::Result<()> {
    let id = ServerId(config.id);
    let mut data_dir = DataDir::open(&config.data_dir, id, config.capacity_bytes)?;
    let cluster = match (config.cluster, data_dir.identity().cluster) {
        (Some(cluster), _) => cluster,
        (None, 0) => founded_cluster(&config),
        (None, joined) => joined,
    };
    data_dir.join(cluster)?;
    let identity = data_dir.identity();

    let http = std::net::TcpListener::bind(config.http)
        .with_context(|| format!("listen for HTTP on {}", config.http))?;
    http.set_nonblocking(true).context("listen for HTTP without blocking")?;
    let (socket, _) = reactor::bind(&Address::Tcp(config.listen))
        .with_context(|| format!("listen for data on {}", config.listen))?;

    let settings = Settings::default();
    let map = Arc::new(Mutex::new(Map::new()));
    let stats = Arc::new(IoStats::new());
    let traffic = Arc::new(Traffic::default());
    let faults = config.allow_faults.then(|| Arc::new(Faults::default()));
    let (proposals, proposed) = mpsc::unbounded_channel();
    let (reports, reported) = mpsc::unbounded_channel();
    let (peer_closed, peers_closed) = mpsc::unbounded_channel();
    let (consensus, connections) = mpsc::unbounded_channel();
    let outlets = Outlets { proposals, reports, peer_closed, consensus };
    let syncer = Syncer::start(data_dir.space()).context("start the syncer")?;

    let scrub = ScrubConfig {
        data_dir: config.data_dir.clone(),
        segments: data_dir.segments(),
        period: config.scrub_period,
        mbps: config.scrub_mbps,
    };
    let (asks, asked) = crossbeam::channel::unbounded();

    // The reactor belongs to the thread that makes it, and with it the disk and the shard.
    let (ready, started) = std::sync::mpsc::channel();
    let shard_map = Arc::clone(&map);
    let shard_faults = faults.clone();
    let shard_traffic = Arc::clone(&traffic);
    let observer = Arc::new(Observer(Arc::clone(&stats)));
    let capacity_bytes = data_dir.space().capacity_bytes();
    let shard = std::thread::Builder::new().name("shard-0".to_owned()).spawn(move || {
        let opened = (|| {
            let mut reactor = Reactor::new(&ReactorConfig::default())?;
            let options = DiskOptions {
                shard: (0, 1),
                settings: settings.clone(),
                faults: shard_faults,
                observer,
            };
            let (disk, found) = Disk::open(&data_dir, &syncer, options, &mut reactor)?;
            let now = Tick(u64::try_from(boot_time().as_nanos())?);
            let brain = Server::new(id, identity.incarnation, settings, now, found);
            let signals = Arc::new(Signals::new(reactor.waker()));
            let line = Line::new(asks, reactor.waker());
            let who = Identity { id, incarnation: identity.incarnation, cluster };
            let shard = Shard::new(
                who,
                reactor,
                socket,
                disk,
                brain,
                shard_map,
                signals.clone(),
                outlets,
                shard_traffic,
                asked,
            )?;
            anyhow::Ok((shard, signals, line))
        })();
        match opened {
            Ok((shard, signals, line)) => {
                let stop = Arc::clone(&signals);
                // Main waits for this; if it is gone, so is the process.
                drop(ready.send(Ok((signals, line))));
                let outcome = shard.run();
                // The directory's lock is held until the last file is closed.
                drop(data_dir);
                if let Err(error) = outcome {
                    // Nothing can be served any more: better dead than deaf.
                    tracing::error!("{:#}", anyhow::Error::from(error));
                    std::process::exit(1);
                }
                drop(stop);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
    let shard = shard.context("start the shard's thread")?;
    let (signals, line) = started.recv().context("the shard's thread died")??;
    let scrubber =
        Scrubber::start(scrub, line, Arc::clone(&stats)).context("start the scrubber")?;

    let (stop, stopping) = watch::channel(false);
    if config.exit_on_stdin_close {
        let stop = stop.clone();
        std::thread::spawn(move || {
            // Nothing is sent on it; its end is the message.
            drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
            stop.send_replace(true);
        });
    }
    let inputs = Inputs {
        config,
        cluster,
        store: identity.store,
        incarnation: identity.incarnation,
        capacity_bytes,
        map,
        signals: Arc::clone(&signals),
        stats,
        traffic,
        faults,
        scrubber,
        http,
        proposals: proposed,
        reports: reported,
        peer_closed: peers_closed,
        connections,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the control plane's threads")?;
    let outcome = runtime.block_on(async {
        tokio::spawn(stop_on_signal(stop.clone()));
        control::run(inputs, stopping).await
    });
    signals.stop();
    if shard.join().is_err() {
        anyhow::bail!("the shard's thread panicked");
    }
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    Ok(outcome?)
}

async fn stop_on_signal(stop: watch::Sender<bool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be watched; stop this process with SIGKILL");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    stop.send_replace(true);
}
