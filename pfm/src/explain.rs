//! Numbers as a person says them.

/// Microseconds in ms with two or three digits: `0.33 ms`, `5.2 ms`, `81 ms`.
pub(crate) fn ms(us: f64) -> String {
    let ms = us / 1_000.0;
    if ms < 1.0 {
        format!("{ms:.2} ms")
    } else if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// A ratio: `1.6×`, `240×`.
pub(crate) fn times(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.1}×") } else { format!("{ratio:.0}×") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_no_longer_than_they_are_worth() {
        assert_eq!(ms(330.0), "0.33 ms");
        assert_eq!(ms(5_210.0), "5.2 ms");
        assert_eq!(ms(81_400.0), "81 ms");
        assert_eq!(times(1.61), "1.6×");
        assert_eq!(times(240.4), "240×");
    }
}
