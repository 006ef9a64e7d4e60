//! The life of a cluster on one machine: start, be ready, keep it alive, stop.
//!
//! Invariant: the lock on DIR is held from before the first child starts until after the last has
//! ended. Whatever fails on the way, no child outlives this function.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::Serialize;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::args::{DevArgs, HttpListen, NbdListen};
use super::check_listeners;
use super::daemon::{Daemon, Programs, Role, TAKE_OVER, describe_end, remove_dead_socket};
use super::error::DevError;
use super::form::{self, Startup};
use super::lock::Lock;
use super::manifest::{Addresses, Manifest, write_atomically};
use super::ports::{Claims, DATA_FIRST, HTTP_FIRST};
use super::report::{Facts, http_url, reachable};
use crate::client::Client;
use crate::output::Output;
use crate::url::BaseUrl;

/// How often children are looked after; well below the second a restart waits.
const TEND_INTERVAL: Duration = Duration::from_millis(50);
/// What SIGTERM promises: daemons drain and exit within 5 s.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// A bridge whose supervisor was killed a moment ago is given this long to leave its socket.
const SOCKET_BUSY_MAX: Duration = Duration::from_secs(8);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Runs the cluster in `dir` (absolute) until it is told to stop.
pub fn run(dir: &Path, args: &DevArgs, output: Output) -> Result<(), DevError> {
    let logs = dir.join("logs");
    fs::create_dir_all(&logs).map_err(DevError::file("create", &logs))?;
    let lock = Lock::acquire(dir)?;
    // Read under the lock: only now is it certain that nobody else changes it.
    let mut manifest = Manifest::for_start(dir, args)?;
    check_listeners(dir, args, &manifest)?;
    let programs = Programs::find()?;
    let stop = stop_on_signals()?;
    let mut claims = Claims::default();
    manifest.addresses = find_ports(&mut claims, args, &manifest, output)?;
    let nbd = claim_nbd(&mut claims, dir, &manifest)?;
    manifest.pin_nbd(dir)?;
    manifest.save(dir)?;

    let mut daemons = Vec::new();
    let lived = live(&mut Life {
        dir,
        args,
        output,
        programs: &programs,
        manifest: &mut manifest,
        nbd: &nbd,
        stop: &stop,
        daemons: &mut daemons,
    });
    shut_down(&mut daemons);
    if lived.is_ok() {
        lock.release();
    }
    drop(claims);
    lived
}

struct Life<'a> {
    dir: &'a Path,
    args: &'a DevArgs,
    output: Output,
    programs: &'a Programs,
    manifest: &'a mut Manifest,
    nbd: &'a NbdListen,
    stop: &'a AtomicBool,
    daemons: &'a mut Vec<Daemon>,
}

/// Everything between the first child's start and the order to stop.
fn live(life: &mut Life<'_>) -> Result<(), DevError> {
    let Life { dir, args, output, programs, manifest, nbd, stop, daemons } = life;
    for addresses in &manifest.addresses {
        let mut daemon = server(dir, args, programs, manifest, addresses)?;
        daemon.start()?;
        daemons.push(daemon);
    }
    let urls: Vec<String> = manifest.addresses.iter().map(|a| http_url(a.http)).collect();
    let bases = urls.iter().map(|url| url.parse::<BaseUrl>());
    let bases = bases.collect::<Result<Vec<_>, _>>().expect("a socket address makes a base URL");
    let client = Client::new(bases);
    let startup = Startup {
        client: &client,
        stop,
        deadline: Instant::now() + Duration::from_secs(args.startup_timeout_s),
        timeout_s: args.startup_timeout_s,
    };
    startup.wait_until_formed(daemons, manifest)?;
    manifest.formed = true;
    manifest.save(dir)?;
    let actual = startup.see_to_volumes(daemons, manifest)?;
    manifest.note_volumes(&actual);
    manifest.save(dir)?;

    let mut bridge = bridge(dir, args, programs, &urls, nbd);
    bridge.start()?;
    daemons.push(bridge);
    startup.wait_for_bridge(daemons, nbd)?;

    let volumes: Vec<String> = manifest.volumes.iter().map(|v| v.name.clone()).collect();
    let facts = Facts { nbd, volumes: &volumes, addresses: &manifest.addresses, daemons };
    let told =
        if output.is_json() { output.json_line(&facts.json()) } else { output.text(&facts.text()) };
    if args.in_background {
        // Whoever started us waits for these lines; if nobody does, nobody wants the cluster.
        told.map_err(|_| DevError::Interrupted)?;
        leave_the_terminal(dir)?;
    }
    tend(daemons, args, *output, stop);
    // Volumes come and go while it runs; what it has now is what the next start compares with.
    if let Ok(actual) = form::volumes(&client) {
        manifest.note_volumes(&actual);
        manifest.save(dir)?;
    }
    Ok(())
}

/// The first SIGINT, SIGTERM or SIGHUP asks for a clean stop; a second SIGINT does not wait for it
/// (the children notice that we are gone).
fn stop_on_signals() -> Result<Arc<AtomicBool>, DevError> {
    const INTERRUPTED: i32 = 130;
    let stop = Arc::new(AtomicBool::new(false));
    let failed = |source| DevError::Signals { source };
    signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&stop))
        .map_err(failed)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(failed)?;
    }
    Ok(stop)
}

/// Addresses for every server: those asked for, those remembered, or free ones.
fn find_ports(
    claims: &mut Claims,
    args: &DevArgs,
    manifest: &Manifest,
    output: Output,
) -> Result<Vec<Addresses>, DevError> {
    let servers = manifest.servers;
    let remembered_http: Vec<SocketAddr> = manifest.addresses.iter().map(|a| a.http).collect();
    let remembered_data: Vec<SocketAddr> = manifest.addresses.iter().map(|a| a.data).collect();
    let http = match args.http {
        Some(HttpListen(first)) => {
            let run: Vec<SocketAddr> = (0..servers)
                .map_while(|step| {
                    Some(SocketAddr::new(first.ip(), first.port().checked_add(step)?))
                })
                .collect();
            if run.len() != usize::from(servers) {
                return Err(DevError::PortsEnd { first: first.to_string(), servers });
            }
            let before = run == remembered_http;
            claim_all(claims, "http", &run, before)?;
            run
        }
        None if remembered_http.is_empty() => {
            claims.claim_run("http", LOOPBACK, HTTP_FIRST, servers)?
        }
        None if manifest.http_chosen => {
            claim_all(claims, "http", &remembered_http, true)?;
            remembered_http
        }
        None => reclaim(claims, "http", remembered_http, HTTP_FIRST, output)?,
    };
    let data = if remembered_data.is_empty() {
        claims.claim_run("data", LOOPBACK, DATA_FIRST, servers)?
    } else {
        reclaim(claims, "data", remembered_data, DATA_FIRST, output)?
    };
    let both = http.into_iter().zip(data).zip(1..);
    Ok(both.map(|((http, data), id)| Addresses { id, data, http }).collect())
}

fn claim_all(
    claims: &mut Claims,
    what: &str,
    run: &[SocketAddr],
    had_them_before: bool,
) -> Result<(), DevError> {
    for (address, id) in run.iter().zip(1..) {
        let what = format!("server {id}'s {what} port");
        if had_them_before {
            claims.claim_again(&what, *address)?;
        } else {
            claims.claim(&what, *address)?;
        }
    }
    Ok(())
}

/// Ports we chose ourselves may be replaced when another program has taken one in the meantime.
fn reclaim(
    claims: &mut Claims,
    what: &'static str,
    remembered: Vec<SocketAddr>,
    first: u16,
    output: Output,
) -> Result<Vec<SocketAddr>, DevError> {
    let mut trial = Claims::default();
    match claim_all(&mut trial, what, &remembered, true) {
        Ok(()) => {
            claims.absorb(trial);
            Ok(remembered)
        }
        Err(busy) => {
            drop(trial);
            output.note(&format!("{busy}; taking other {what} ports"));
            let count = u16::try_from(remembered.len()).expect("as many as there are servers");
            claims.claim_run(what, LOOPBACK, first, count)
        }
    }
}

/// Makes sure the bridge will be able to listen.
fn claim_nbd(claims: &mut Claims, dir: &Path, manifest: &Manifest) -> Result<NbdListen, DevError> {
    let nbd = manifest.nbd(dir)?;
    match &nbd {
        NbdListen::Tcp(address) => claims.claim_again("nbd-bridge", *address)?,
        NbdListen::Unix(path) => {
            let deadline = Instant::now() + SOCKET_BUSY_MAX;
            loop {
                match remove_dead_socket(path) {
                    Err(DevError::SocketInUse { .. }) if Instant::now() < deadline => {
                        std::thread::sleep(TEND_INTERVAL);
                    }
                    done => break done?,
                }
            }
        }
    }
    Ok(nbd)
}

/// `storaged.toml`, as storaged reads it.
#[derive(Serialize)]
struct ServerConfig<'a> {
    id: u16,
    data_dir: &'a Path,
    listen: SocketAddr,
    http: SocketAddr,
    zone: String,
    region: &'static str,
    tier: &'static str,
    bootstrap: bool,
    allow_faults: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_after: Option<String>,
    /// Everybody, this server too. Last, because TOML wants tables after values.
    peers: Vec<Peer>,
}

#[derive(Serialize)]
struct Peer {
    id: u16,
    data: SocketAddr,
    http: SocketAddr,
}

/// Writes a server's configuration and prepares its process. Every server is a zone of its own.
fn server(
    dir: &Path,
    args: &DevArgs,
    programs: &Programs,
    manifest: &Manifest,
    addresses: &Addresses,
) -> Result<Daemon, DevError> {
    let Addresses { id, data, http } = *addresses;
    let home = dir.join(format!("server-{id}"));
    let data_dir = home.join("data");
    fs::create_dir_all(&data_dir).map_err(DevError::file("create", &data_dir))?;
    let peers = manifest.addresses.iter().map(|peer| Peer {
        id: peer.id,
        data: peer.data,
        http: reachable(peer.http),
    });
    let config = ServerConfig {
        id,
        data_dir: &data_dir,
        listen: data,
        http,
        zone: format!("zone-{id}"),
        region: "local",
        tier: "ssd",
        // Never over a cluster that has formed: if server 1's data went missing, it must rejoin.
        bootstrap: id == 1 && !manifest.formed,
        allow_faults: true,
        down_after: args.down_after.map(|time| humantime::format_duration(time).to_string()),
        peers: peers.collect(),
    };
    let path = home.join("storaged.toml");
    let text = toml::to_string(&config)
        .map_err(|why| DevError::BadManifest { path: path.clone(), why: why.to_string() })?;
    write_atomically(&path, text.as_bytes())?;
    let mut arguments: Vec<OsString> = vec!["--config".into(), path.into()];
    arguments.push("--exit-on-stdin-close".into());
    if !http.ip().is_loopback() && args.insecure {
        arguments.push("--insecure".into());
    }
    let log = dir.join("logs").join(format!("server-{id}.log"));
    let role = Role::Server(id);
    Ok(Daemon::new(role, &programs.storaged, arguments, log, None))
}

fn bridge(
    dir: &Path,
    args: &DevArgs,
    programs: &Programs,
    urls: &[String],
    nbd: &NbdListen,
) -> Daemon {
    let mut arguments: Vec<OsString> = vec!["--cluster".into(), urls.join(",").into()];
    let (listen, socket) = match nbd {
        NbdListen::Unix(path) => {
            // Built from the path itself: what is displayed may differ from what it is.
            let mut listen = OsString::from("unix:");
            listen.push(path);
            (listen, Some(path.clone()))
        }
        NbdListen::Tcp(_) => (nbd.to_string().into(), None),
    };
    arguments.extend(["--listen".into(), listen, "--exit-on-stdin-close".into()]);
    // The cluster is ours, and so is whichever bridge had a volume before: one that was killed must
    // not be waited for.
    arguments.push(TAKE_OVER.into());
    if !nbd.is_local() && args.insecure {
        arguments.push("--insecure".into());
    }
    let log = dir.join("logs").join("nbd-bridge.log");
    Daemon::new(Role::Bridge, &programs.nbd_bridge, arguments, log, socket)
}

/// From here on nobody reads our stdout and stderr: they go to a log, and whoever waits for the
/// end of our stdout is released.
fn leave_the_terminal(dir: &Path) -> Result<(), DevError> {
    let path = super::background_log(dir);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(DevError::file("open", &path))?;
    rustix::stdio::dup2_stderr(&log)
        .and_then(|()| rustix::stdio::dup2_stdout(&log))
        .map_err(|why| DevError::file("write to", &path)(why.into()))
}

/// Keeps the children alive until we are told to stop.
/// The code a bridge ends with when others have taken all its volumes over.
const FENCED: i32 = 3;

fn tend(daemons: &mut [Daemon], args: &DevArgs, output: Output, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for daemon in daemons.iter_mut() {
            if let Some(status) = daemon.reap() {
                let end = describe_end(status);
                if daemon.role == Role::Bridge && status.code() == Some(FENCED) {
                    // Somebody took the volumes on purpose: they are not taken back.
                    daemon.stop_taking_over();
                }
                if args.no_restart {
                    output.note(&format!("{} ended ({end}) and stays down", daemon.name()));
                } else {
                    output.note(&format!("{} ended ({end}), starting it again", daemon.name()));
                    daemon.schedule_restart();
                }
            }
            if daemon.is_due_for_restart() {
                restart(daemon, output);
            }
        }
        std::thread::sleep(TEND_INTERVAL);
    }
}

fn restart(daemon: &mut Daemon, output: Output) {
    if let Err(why) = daemon.start() {
        output.note(&format!("{why}; trying again"));
        daemon.schedule_restart();
        return;
    }
    let pid = daemon.pid().expect("it has just been started");
    let told = if output.is_json() {
        output.json_line(&json!({"restarted": daemon.role.to_string(), "pid": pid}))
    } else {
        output.text(&format!("pid: {} {pid}", daemon.role))
    };
    if told.is_err() {
        // Nobody listens any more; the cluster lives on all the same.
    }
}

/// Ends the bridge first, so that its clients' last requests still find servers; then the servers.
fn shut_down(daemons: &mut [Daemon]) {
    // The bridge is the last one to be started.
    let servers = daemons.iter().take_while(|daemon| daemon.role != Role::Bridge).count();
    let (servers, bridge) = daemons.split_at_mut(servers);
    end(bridge);
    end(servers);
}

/// SIGTERM, time to drain, then SIGKILL for whoever has not ended.
fn end(daemons: &mut [Daemon]) {
    for daemon in daemons.iter() {
        daemon.signal(Signal::TERM);
    }
    if !all_end_within(daemons, DRAIN_MAX) {
        for daemon in daemons.iter() {
            daemon.signal(Signal::KILL);
        }
        // The kernel may need a moment to let go of a process in the middle of I/O.
        all_end_within(daemons, DRAIN_MAX);
    }
}

fn all_end_within(daemons: &mut [Daemon], limit: Duration) -> bool {
    const POLL_INTERVAL: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + limit;
    loop {
        for daemon in daemons.iter_mut() {
            daemon.reap();
        }
        if daemons.iter().all(|daemon| daemon.pid().is_none()) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
