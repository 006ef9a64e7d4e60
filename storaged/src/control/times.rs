//! Times: the wall clock, for records and people. Nothing is decided by it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 on a clock before that.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `ms` since 1970 as RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn rfc3339(ms: u64) -> String {
    let seconds = pfm::rfc3339(ms / 1000);
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn a_time_is_written_in_utc_to_the_millisecond() {
        assert_eq!(rfc3339(1_795_219_200_045), "2026-11-21T00:00:00.045Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
    }
}
