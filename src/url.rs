//! The few pieces of URL handling the CLI needs: base URLs of servers, and percent-encoding.
//!
//! Invariant: a `BaseUrl` is `http://HOST:PORT` without a trailing slash, so that a route that
//! starts with `/` can be appended.

use std::fmt::{self, Write as _};
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Where a server's HTTP API lives: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

/// Why a URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("{0:?} is https, and there is no TLS yet: write http://HOST:PORT")]
    Tls(String),
    #[error("{0:?} is no server's address: write http://HOST:PORT")]
    NotAnAddress(String),
}

impl FromStr for BaseUrl {
    type Err = UrlError;

    /// Accepts `http://HOST:PORT`, with or without a trailing slash, and a bare `HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, UrlError> {
        let trimmed = text.trim();
        if trimmed.starts_with("https://") {
            return Err(UrlError::Tls(text.to_owned()));
        }
        let authority = trimmed.strip_prefix("http://").unwrap_or(trimmed);
        let authority = authority.trim_end_matches('/');
        if !is_authority(authority) {
            return Err(UrlError::NotAnAddress(text.to_owned()));
        }
        Ok(Self(format!("http://{authority}")))
    }
}

/// `HOST` or `HOST:PORT`, where an IPv6 address stands in brackets.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (text, None),
    };
    let host_is_plain = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
            !host.is_empty() && host.chars().all(plain)
        }
    };
    host_is_plain && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Percent-encodes one path segment or query value: everything but unreserved characters.
pub fn encode(text: &str) -> String {
    encode_except(text, "-._~")
}

/// Percent-encodes a file path used as a query value. `/` and `:` may stand there as they are
/// (RFC 3986, section 3.4), which keeps an NBD URI readable.
pub fn encode_path(text: &str) -> String {
    encode_except(text, "-._~/:@,")
}

fn encode_except(text: &str, kept: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || (c.is_ascii() && kept.contains(c)) {
            encoded.push(c);
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_brought_to_one_shape() {
        for text in ["http://127.0.0.1:8001", "http://127.0.0.1:8001/", "127.0.0.1:8001"] {
            let url: BaseUrl = text.parse().expect("valid");
            assert_eq!(url.to_string(), "http://127.0.0.1:8001");
        }
        assert!("http://[::1]:8001".parse::<BaseUrl>().is_ok());
    }

    #[test]
    fn what_is_no_server_address_is_refused() {
        for text in
            ["", "http://", "http:", "https://a:1", "ftp://a", "http://a/b", "a b", "a:x", "::1"]
        {
            assert!(text.parse::<BaseUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn reserved_characters_are_encoded() {
        assert_eq!(encode("a/b?c"), "a%2Fb%3Fc");
        assert_eq!(encode_path("/tmp/a b&c#ü"), "/tmp/a%20b%26c%23%C3%BC");
    }
}
