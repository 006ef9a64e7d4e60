//! Replays the files of `tests/corpus`, each a message and what must come of it.
//!
//! A line starting with `#` is a remark, `expect:` is the outcome as `receiver` says it. Every other
//! line is bytes, in hex, or one byte times a count, as in `00*124`; what follows `;` is a remark.
//!
//! Invariant: bytes in `good` never change while their wire version lives: a peer of an older build
//! sends them.

use std::path::{Path, PathBuf};

use crate::receiver::receive;

pub struct Case {
    pub path: PathBuf,
    pub expect: String,
    pub bytes: Vec<u8>,
}

impl Case {
    fn read(path: PathBuf) -> Self {
        let (mut expect, mut bytes) = (String::new(), Vec::new());
        for line in read(&path).expect("a corpus file is text").lines() {
            if line.starts_with('#') {
            } else if let Some(value) = line.strip_prefix("expect:") {
                value.trim().clone_into(&mut expect);
            } else {
                let line = line.split(';').next().unwrap_or_default();
                line.split_whitespace().for_each(|token| bytes.extend(decode(token, &path)));
            }
        }
        assert!(!expect.is_empty(), "{} expects nothing", path.display());
        Self { path, expect, bytes }
    }
}

fn decode(token: &str, path: &Path) -> Vec<u8> {
    let once_and_count = || {
        let (what, count) = token.split_once('*').unwrap_or((token, "1"));
        let pair = |at: usize| u8::from_str_radix(what.get(at..at + 2)?, 16).ok();
        let once: Option<Vec<u8>> = (0..what.len()).step_by(2).map(pair).collect();
        Some((once?, count.parse::<usize>().ok()?))
    };
    let strange = || unreachable!("{}: {token}", path.display());
    let (once, count) = once_and_count().unwrap_or_else(strange);
    once.repeat(count)
}

#[expect(clippy::disallowed_methods, reason = "a test's own files, not a replica's")]
pub fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

pub fn cases(name: &str) -> Vec<Case> {
    let folder = folder(name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the corpus is beside this test")
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.into_iter().map(Case::read).collect()
}

fn all_end_as_expected(name: &str) {
    let mut wrong = Vec::new();
    for Case { path, expect, bytes } in cases(name) {
        let outcome = receive(&bytes).to_string();
        if outcome != expect {
            wrong.push(format!("{}\n  {outcome}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_good_message_of_the_corpus_says_what_its_file_says() {
    all_end_as_expected("good");
}

#[test]
fn every_hostile_message_of_the_corpus_ends_as_its_file_says() {
    all_end_as_expected("hostile");
}
