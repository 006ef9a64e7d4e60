//! Pressure stall information: how much of the time tasks waited for I/O, a CPU or memory.
//!
//! Invariant: percentages are within 0–100; what does not parse is `None`, never a zero that
//! would read as "no pressure". See the kernel's Documentation/accounting/psi.rst.

/// One line: shares of time in percent, and the total.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

/// One file of `/proc/pressure`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stall,
    /// All tasks waited; older kernels have no such line for the CPU.
    pub full: Option<Stall>,
}

/// Reads the text of one file; `None` when it has no `some` line we understand.
#[must_use]
pub fn parse(text: &str) -> Option<Pressure> {
    let line = |word: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
            .and_then(parse_stall)
    };
    Some(Pressure { some: line("some")?, full: line("full") })
}

fn parse_stall(fields: &str) -> Option<Stall> {
    let value = |name: &str| {
        fields
            .split_ascii_whitespace()
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
    };
    let percent = |name: &str| {
        let percent: f64 = value(name)?.parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent)
    };
    Some(Stall {
        avg10: percent("avg10")?,
        avg60: percent("avg60")?,
        avg300: percent("avg300")?,
        total_us: value("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_captured_file_is_understood() {
        let text = "some avg10=2.15 avg60=1.00 avg300=0.84 total=37300882\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n";
        let pressure = parse(text).expect("captured from a running kernel");
        assert!((pressure.some.avg10 - 2.15).abs() < 1e-9);
        assert!((pressure.some.avg300 - 0.84).abs() < 1e-9);
        assert_eq!(pressure.some.total_us, 37_300_882);
        assert_eq!(pressure.full.map(|full| full.total_us), Some(17));
    }

    #[test]
    fn an_older_kernels_cpu_file_has_no_full_line() {
        let text = "some avg10=0.00 avg60=0.01 avg300=0.02 total=99\n";
        let pressure = parse(text).expect("one line is enough");
        assert_eq!(pressure.full, None);
    }

    #[test]
    fn nonsense_is_not_read_as_no_pressure() {
        for text in [
            "",
            "some",
            "some avg10=x avg60=0.00 avg300=0.00 total=0",
            "some avg10=NaN avg60=0.00 avg300=0.00 total=0",
            "some avg10=101.0 avg60=0.00 avg300=0.00 total=0",
            "some avg60=0.00 avg300=0.00 total=0",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
