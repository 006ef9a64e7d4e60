//! Accounts: what each server holds and has promised, kept in step with the segments (I10).
//!
//! Invariant: an account is a sum over the configs that name its server, never a counter of its
//! own, so that an aborted migration cannot leak a slot.

use std::collections::{BTreeMap, BTreeSet};

use super::types::SegmentConfig;
use crate::ids::*;

/// What the map knows one server to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Capacity reserved here: whole segments, as a member or as a joiner.
    pub used_bytes: u64,
    /// Segments it is primary of.
    pub primaries: u64,
    /// Segments it is a member of.
    pub members: u64,
    /// Migrations towards it.
    pub slots_in: u32,
    /// Migrations of one of its replicas to elsewhere.
    pub slots_out: u32,
    /// Segments it is a member or joiner of.
    pub segments: BTreeSet<SegmentId>,
}

impl Account {
    fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.slots_in == 0 && self.slots_out == 0
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    of: BTreeMap<ServerId, Account>,
}

impl Accounts {
    pub(super) fn get(&self, server: ServerId) -> Option<&Account> {
        self.of.get(&server)
    }

    pub(super) fn add(&mut self, config: &SegmentConfig) {
        let bytes = segment_bytes(config);
        for member in &config.members {
            let account = self.of.entry(member.server).or_default();
            account.used_bytes += bytes;
            account.members += 1;
            account.primaries += u64::from(member.server == config.primary);
            account.segments.insert(config.segment);
        }
        if let Some(joining) = config.joining {
            let account = self.of.entry(joining.target).or_default();
            account.used_bytes += bytes;
            account.slots_in += 1;
            account.segments.insert(config.segment);
            if let Some(from) = joining.replaces {
                self.of.entry(from).or_default().slots_out += 1;
            }
        }
    }

    /// Takes back what `add` counted for this very config.
    pub(super) fn remove(&mut self, config: &SegmentConfig) {
        let bytes = segment_bytes(config);
        for member in &config.members {
            self.change(member.server, |account| {
                account.used_bytes -= bytes;
                account.members -= 1;
                account.primaries -= u64::from(member.server == config.primary);
                account.segments.remove(&config.segment);
            });
        }
        if let Some(joining) = config.joining {
            self.change(joining.target, |account| {
                account.used_bytes -= bytes;
                account.slots_in -= 1;
                account.segments.remove(&config.segment);
            });
            if let Some(from) = joining.replaces {
                self.change(from, |account| account.slots_out -= 1);
            }
        }
    }

    /// Empty accounts go, so that accounts made by addition alone are equal to these.
    fn change(&mut self, server: ServerId, change: impl FnOnce(&mut Account)) {
        let account = self.of.entry(server).or_default();
        change(account);
        if account.is_empty() {
            self.of.remove(&server);
        }
    }
}

/// What a replica of it reserves: the whole segment, though the volume may end inside it.
pub(super) fn segment_bytes(config: &SegmentConfig) -> u64 {
    u64::from(config.geometry.segment_blocks) * BLOCK_BYTES
}
