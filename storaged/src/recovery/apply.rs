//! Apply: writing what was accepted.
//!
//! Invariant: the identity is written before the log is put in its place. A server whose directory
//! is in between finds a log of another cluster than its own, and does not start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags};
use smt::map::Map;

use super::survey::block_on;
use crate::consensus::{Peer, StateMachine, offline};
use crate::control::{JOINING_MARK, SmtMachine};
use crate::disk::AtRest;

const LIVE: &str = "consensus";
const NEW: &str = "consensus.new";

fn sync(directory: &Path) -> anyhow::Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("sync {}", directory.display()))
}

/// A name nobody has, for what is put aside.
fn aside(directory: &Path, cluster: u64) -> PathBuf {
    let name = |n: u32| match n {
        0 => format!("consensus.before-{cluster:016x}"),
        n => format!("consensus.before-{cluster:016x}.{n}"),
    };
    let free = (0..).map(|n| directory.join(name(n))).find(|path| !path.exists());
    free.expect("some name is free")
}

/// Makes a directory the one that leads the recovered cluster alone, with `map`.
pub fn make_leader(at: &mut AtRest, map: &Map, cluster: u64, term: u64) -> anyhow::Result<()> {
    let server = at.identity().server;
    let entry = map.server(server).context("the leader is not in its own map")?;
    let peer = Peer { data: entry.address.clone(), http: entry.http.clone() };
    let new = at.path().join(NEW);
    put_aside(at, &new)?;
    let snapshot = SmtMachine::new(Arc::new(Mutex::new(map.clone())), Box::new(|| {})).snapshot();
    let position = (term, map.version().0);
    block_on(offline::found(&new, (server.0, peer), cluster, position, &snapshot))?
        .with_context(|| format!("make the log in {}", new.display()))?;
    sync(&new)?;
    take_place(at, cluster)
}

/// Makes a directory one of a server that waits to be sent the recovered cluster's log.
pub fn join(at: &mut AtRest, cluster: u64) -> anyhow::Result<()> {
    let new = at.path().join(NEW);
    put_aside(at, &new)?;
    // A server with an empty log whose configuration says `bootstrap` would found a cluster.
    fs::create_dir(&new).with_context(|| format!("make {}", new.display()))?;
    let mark = new.join(JOINING_MARK);
    File::create(&mark)
        .and_then(|mark| mark.sync_all())
        .with_context(|| format!("make {}", mark.display()))?;
    sync(&new)?;
    take_place(at, cluster)
}

/// What a recovery that was stopped half-way left behind may be the log it was about to replace.
fn put_aside(at: &AtRest, left: &Path) -> anyhow::Result<()> {
    if left.exists() {
        let aside = aside(at.path(), at.identity().cluster);
        fs::rename(left, &aside).with_context(|| format!("put aside {}", aside.display()))?;
    }
    Ok(())
}

/// The directory becomes one of `cluster`, and what was made ready its log.
fn take_place(at: &mut AtRest, cluster: u64) -> anyhow::Result<()> {
    let (live, new) = (at.path().join(LIVE), at.path().join(NEW));
    at.move_to(cluster)?;
    if live.exists() {
        rustix::fs::renameat_with(CWD, &live, CWD, &new, RenameFlags::EXCHANGE)
            .with_context(|| format!("exchange {} and {}", live.display(), new.display()))?;
        put_aside(at, &new)?;
    } else {
        fs::rename(&new, &live).with_context(|| format!("rename {}", new.display()))?;
    }
    sync(at.path())
}
