//! Sizes as people write them, and as we write them back.
//!
//! Invariant: units are binary (`4G` = `4GiB` = 4×2^30) and parsing never rounds. Decimal units
//! (`4GB`) are refused rather than guessed.

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No whole number with a unit.
    #[error("a size is a whole number and a unit, such as 512MiB or 4G, not {0:?}")]
    NotASize(String),
    /// A decimal unit, and what to write instead.
    #[error("{0:?} is ambiguous: units here are binary, write {1} (2^10, 2^20, …)")]
    Decimal(String, String),
    /// More bytes than can be counted.
    #[error("{0:?} does not fit in 64 bits")]
    TooLarge(String),
}

/// Names of the binary units, by the power of 1024 they stand for.
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Parses `4G`, `4GiB`, `512m`, `4096`, `4096B` into bytes.
///
/// # Errors
/// When it is not a whole number with a known binary unit, or exceeds 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(digits_end);
    if digits.is_empty() {
        return Err(SizeError::NotASize(text.to_owned()));
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge(text.to_owned()))?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kib" => 1,
        "m" | "mib" => 2,
        "g" | "gib" => 3,
        "t" | "tib" => 4,
        "p" | "pib" => 5,
        "e" | "eib" => 6,
        "kb" | "mb" | "gb" | "tb" | "pb" | "eb" => {
            let letter = unit[..1].to_ascii_uppercase();
            let binary = format!("{number}{letter}iB");
            return Err(SizeError::Decimal(text.to_owned(), binary));
        }
        _ => return Err(SizeError::NotASize(text.to_owned())),
    };
    number.checked_mul(1 << (10 * power)).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Writes bytes for people: `4 GiB`, `1.5 MiB`, `17 B`. One decimal at most, so it may round.
pub fn display_bytes(bytes: u64) -> String {
    let mut power = 0;
    while power + 1 < UNITS.len() && bytes >> (10 * (power + 1)) > 0 {
        power += 1;
    }
    let unit_bytes = 1_u64 << (10 * power);
    let unit = UNITS[power];
    if bytes.is_multiple_of(unit_bytes) {
        format!("{} {unit}", bytes / unit_bytes)
    } else {
        format!("{:.1} {unit}", bytes as f64 / unit_bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_units_are_the_same_binary_size() {
        for text in ["4G", "4g", "4GiB", "4gib", "4 GiB", "4096M", "4294967296"] {
            assert_eq!(parse_bytes(text), Ok(4 << 30), "{text}");
        }
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("4096B"), Ok(4096));
        assert_eq!(parse_bytes("0"), Ok(0));
    }

    #[test]
    fn a_decimal_unit_is_refused_and_the_binary_one_is_named() {
        let refused = parse_bytes("4GB").expect_err("GB is ambiguous");
        assert!(refused.to_string().contains("4GiB"), "{refused}");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "G", "-4G", "1.5G", "4 G iB", "4X", "४G", "4Gé"] {
            assert!(matches!(parse_bytes(text), Err(SizeError::NotASize(_))), "{text}");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_refused() {
        for text in ["16E", "99999999999999999999"] {
            assert!(matches!(parse_bytes(text), Err(SizeError::TooLarge(_))), "{text}");
        }
        assert_eq!(parse_bytes("15E"), Ok(15 << 60));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(display_bytes(0), "0 B");
        assert_eq!(display_bytes(1023), "1023 B");
        assert_eq!(display_bytes(4 << 30), "4 GiB");
        assert_eq!(display_bytes(3 << 19), "1.5 MiB");
        assert_eq!(display_bytes(u64::MAX), "16.0 EiB");
    }
}
