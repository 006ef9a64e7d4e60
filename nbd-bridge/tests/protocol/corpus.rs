//! Runs the conversations in `tests/corpus`, each a text file that says what must come of it.
//!
//! A line starting with `#` is a remark, `session:` picks the rules of a transmission, `expect:`
//! is the outcome as the drivers in `client` describe it. Every other line is bytes: `"text"`,
//! pairs of hex digits, or either times a count, as in `00*124`; what follows `;` is a remark.

use std::path::{Path, PathBuf};

use nbd_bridge::handshake::Handshake;

use crate::client::{knock, talk_in_pieces};
use crate::transmission::{plain, read_only, structured};

struct Case {
    path: PathBuf,
    session: String,
    expect: String,
    bytes: Vec<u8>,
}

impl Case {
    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).expect("a corpus file is text");
        let (mut session, mut expect, mut bytes) = (String::new(), String::new(), Vec::new());
        for line in text.lines() {
            if line.starts_with('#') {
            } else if let Some(value) = line.strip_prefix("session:") {
                value.trim().clone_into(&mut session);
            } else if let Some(value) = line.strip_prefix("expect:") {
                value.trim().clone_into(&mut expect);
            } else {
                let line = line.split(';').next().unwrap_or_default();
                line.split_whitespace().for_each(|token| bytes.extend(decode(token, &path)));
            }
        }
        assert!(!expect.is_empty(), "{} expects nothing", path.display());
        Self { path, session, expect, bytes }
    }
}

fn decode(token: &str, path: &Path) -> Vec<u8> {
    let (what, count) = token.rsplit_once('*').unwrap_or((token, "1"));
    let count: usize =
        count.parse().unwrap_or_else(|_| unreachable!("{}: {token}", path.display()));
    let once = match what.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(text) => text.as_bytes().to_vec(),
        None => (0..what.len())
            .step_by(2)
            .map(|at| {
                let pair = what.get(at..at + 2).unwrap_or("odd");
                u8::from_str_radix(pair, 16)
                    .unwrap_or_else(|_| unreachable!("{}: {token}", path.display()))
            })
            .collect(),
    };
    once.repeat(count)
}

fn cases(folder: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the corpus is beside this test")
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.into_iter().map(Case::read).collect()
}

/// The conversations themselves, for `fuzz` to make worse.
pub fn bytes(folder: &str) -> Vec<Vec<u8>> {
    cases(folder).into_iter().map(|case| case.bytes).collect()
}

#[test]
fn every_handshake_of_the_corpus_ends_as_its_file_says() {
    let mut wrong = Vec::new();
    for case in cases("handshake") {
        let bytes: Vec<&[u8]> = case.bytes.chunks(1).collect();
        for pieces in [vec![case.bytes.as_slice()], bytes] {
            let transcript = talk_in_pieces(Handshake::new(), &pieces).transcript();
            if transcript != case.expect {
                wrong.push(format!("{}\n  {transcript}", case.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_transmission_of_the_corpus_ends_as_its_file_says() {
    let mut wrong = Vec::new();
    for case in cases("transmission") {
        let session = match case.session.as_str() {
            "structured" => structured(),
            "simple" => plain(),
            "read-only" => read_only(),
            other => unreachable!("{}: session '{other}'", case.path.display()),
        };
        let bytes: Vec<&[u8]> = case.bytes.chunks(1).collect();
        for pieces in [vec![case.bytes.as_slice()], bytes] {
            let transcript = knock(&session, &pieces).0.join("; ");
            if transcript != case.expect {
                wrong.push(format!("{}\n  {transcript}", case.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
