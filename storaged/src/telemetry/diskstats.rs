//! The block device behind a directory, and its counters in `/proc/diskstats`.
//!
//! Invariant: what the kernel prints is parsed, never trusted: a line we do not understand is
//! skipped. A directory on a file system without a device of its own (overlay, tmpfs, btrfs
//! subvolumes have major 0) has no counters, which is not an error.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A block device by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

/// Counters since boot (the kernel's Documentation/admin-guide/iostats.rst). A sector is 512 B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounters {
    pub reads: u64,
    pub sectors_read: u64,
    pub read_ms: u64,
    pub writes: u64,
    pub sectors_written: u64,
    pub write_ms: u64,
    /// Requests at the device now.
    pub in_flight: u64,
    /// Time in which the device had work.
    pub busy_ms: u64,
    /// Sum over requests of the time they took so far.
    pub weighted_ms: u64,
}

/// The device that holds `path`.
///
/// # Errors
/// When `path` cannot be looked at.
pub fn device_of_path(path: &Path) -> io::Result<Device> {
    let device = std::fs::metadata(path)?.dev();
    Ok(Device { major: rustix::fs::major(device), minor: rustix::fs::minor(device) })
}

/// The line of `device` in the text of `/proc/diskstats`; `None` when it is not there.
#[must_use]
pub fn parse(text: &str, device: Device) -> Option<DiskCounters> {
    text.lines().find_map(|line| parse_line(line, device))
}

fn parse_line(line: &str, device: Device) -> Option<DiskCounters> {
    let mut fields = line.split_ascii_whitespace();
    if fields.next()?.parse() != Ok(device.major) || fields.next()?.parse() != Ok(device.minor) {
        return None;
    }
    let _name = fields.next()?;
    let mut next = || fields.next()?.parse::<u64>().ok();
    let reads = next()?;
    let _reads_merged = next()?;
    let sectors_read = next()?;
    let read_ms = next()?;
    let writes = next()?;
    let _writes_merged = next()?;
    Some(DiskCounters {
        reads,
        sectors_read,
        read_ms,
        writes,
        sectors_written: next()?,
        write_ms: next()?,
        in_flight: next()?,
        busy_ms: next()?,
        weighted_ms: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &str = "\
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 254       0 vda 104839 1200 9612314 51234 2205114 88012 71829312 904411 3 612004 955645 0 0 0 0 41022 17
 254       1 vda1 104700 1200 9600000 51200 2205000 88012 71829000 904400 0 612000 955600 0 0 0 0
 259       0 nvme0n1 garbage
";

    #[test]
    fn a_device_is_found_by_its_numbers_and_not_by_a_prefix_of_its_name() {
        let device = Device { major: 254, minor: 0 };
        let counters = parse(CAPTURED, device).expect("vda is in the text");
        assert_eq!(
            counters,
            DiskCounters {
                reads: 104_839,
                sectors_read: 9_612_314,
                read_ms: 51_234,
                writes: 2_205_114,
                sectors_written: 71_829_312,
                write_ms: 904_411,
                in_flight: 3,
                busy_ms: 612_004,
                weighted_ms: 955_645,
            }
        );
        let partition = parse(CAPTURED, Device { minor: 1, ..device });
        assert_eq!(partition.expect("vda1 is in the text").in_flight, 0);
    }

    #[test]
    fn an_absent_device_and_a_line_of_garbage_have_no_counters() {
        assert_eq!(parse(CAPTURED, Device { major: 0, minor: 40 }), None);
        assert_eq!(parse(CAPTURED, Device { major: 259, minor: 0 }), None);
        assert_eq!(parse("", Device { major: 254, minor: 0 }), None);
    }

    #[test]
    fn a_directory_has_a_device() {
        let here = device_of_path(Path::new(".")).expect("the working directory exists");
        let root = device_of_path(Path::new("/proc")).expect("/proc is mounted");
        assert_eq!(root.major, 0);
        assert_ne!(here, root);
    }
}
