//! Options: how a volume is opened, and in whose name.

use std::fmt;
use std::time::Duration;

/// Bytes of an owner's name that the cluster takes.
const OWNER_BYTES_MAX: usize = 255;

/// What an opened volume may be used for, and by how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// Read and changed by this attachment alone; others may read.
    #[default]
    Exclusive,
    /// Read and changed by several that see to their own order, as a cluster file system does.
    Shared,
    /// Read only, which needs no attachment and keeps nobody out.
    ReadOnly,
}

/// How to open a volume. The default is exclusive, and waits while another one has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// What it may be used for.
    pub mode: OpenMode,
    /// Take it from whoever has it, though he lives: he is fenced, and none of his writes takes
    /// effect once the volume is open here.
    pub take_over: bool,
    /// Stand by while another one has it, until he gives it back or has been silent for 10 s;
    /// otherwise opening fails with [`crate::VolumeError::Attached`].
    pub wait: bool,
    /// Who we are, for people who look at who has a volume.
    pub owner: String,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        let program = std::env::current_exe().ok();
        let program = program.as_deref().and_then(|path| path.file_name());
        let program = program.map_or("a program".into(), |name| name.to_string_lossy());
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "an unnamed host" } else { host.trim() };
        OpenOptions {
            mode: OpenMode::default(),
            take_over: false,
            wait: true,
            owner: format!("{program} on {host} (pid {})", std::process::id()),
        }
    }
}

impl fmt::Display for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenOptions { mode, take_over, wait, owner } = self;
        let mode = match mode {
            OpenMode::Exclusive => "exclusive",
            OpenMode::Shared => "shared",
            OpenMode::ReadOnly => "read-only",
        };
        write!(f, "mode {mode}, take_over {take_over}, wait {wait}, owner {owner:?}")
    }
}

impl OpenOptions {
    /// For reading alone.
    #[must_use]
    pub fn read_only() -> OpenOptions {
        OpenOptions { mode: OpenMode::ReadOnly, ..OpenOptions::default() }
    }

    /// The owner's name, no longer than the cluster takes it.
    pub(crate) fn owner_within_bounds(&self) -> &str {
        let end = self.owner.floor_char_boundary(OWNER_BYTES_MAX);
        &self.owner[..end]
    }
}

/// How often a holder says that it lives. Three of these, and what it takes to find another
/// server, are the 10 s after which the cluster gives the volume to one who waits for it.
pub(crate) const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(3);
/// The same after one that reached nobody.
pub(crate) const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_says_who_it_is_and_is_cut_between_letters() {
        let options = OpenOptions::default();
        let pid = format!("(pid {})", std::process::id());
        assert!(options.owner.ends_with(&pid), "{}", options.owner);
        let long = OpenOptions { owner: "é".repeat(200), ..OpenOptions::default() };
        assert_eq!(long.owner_within_bounds(), "é".repeat(127));
    }
}
