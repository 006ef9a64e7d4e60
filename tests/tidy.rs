//! Tidy: the rules of the house that neither the compiler nor clippy can hold.
//!
//! Invariant: every rule here is a function from file contents to complaints, and the last test
//! feeds each of them something it must complain about. Files are those git knows or would add, so
//! that nothing built or ignored is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longer files hide a state machine that wants to be split by phase.
const RUST_LINES_MAX: usize = 700;

/// Who may depend on whom, besides crates that are not ours. No cycle, and no other arrow without
/// a decision page.
const ARROWS: &[(&str, &[&str])] = &[
    ("smt", &[]),
    ("pfm", &[]),
    ("reactor", &[]),
    ("migrator", &["smt", "pfm"]),
    ("client-lib", &["smt", "reactor"]),
    ("nbd-bridge", &["client-lib", "reactor"]),
    ("storaged", &["smt", "pfm", "migrator", "reactor", "client-lib"]),
    ("petrel", &["client-lib"]),
    // The simulator runs the brain, and nothing else of ours.
    ("sim", &["smt"]),
    // Chaos asks real servers what an application would, and judges as the simulator does.
    ("chaos", &["client-lib", "sim"]),
];

/// Arrows of tests, which ship nothing.
const TEST_ARROWS: &[(&str, &[&str])] = &[
    // The root's own tests run the simulator's pinned seeds.
    ("petrel", &["sim"]),
    // The bridge's tests stand in for the servers behind it, whose language is smt's wire format.
    ("nbd-bridge", &["smt"]),
];

/// A file of the checkout: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that git tracks, or would if it were added.
fn sources() -> Vec<Source> {
    let listed = Command::new("git")
        // The checkout may belong to another user, as in a container.
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(["--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is installed: the checkout came by it");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names here are UTF-8");
    let sources: Vec<Source> = names
        .split_terminator('\0')
        // A tracked file may be deleted and not committed yet; a binary one has no text.
        .filter_map(|path| {
            let text = fs::read_to_string(root().join(path)).ok()?;
            Some(Source { path: path.to_owned(), text })
        })
        .collect();
    assert!(sources.len() > 100, "only {} files found: is this the checkout?", sources.len());
    sources
}

fn rust(sources: &[Source]) -> impl Iterator<Item = &Source> {
    sources.iter().filter(|s| Path::new(&s.path).extension().is_some_and(|e| e == "rs"))
}

/// Complains about each of `sources` with the rule's sentences, or passes.
fn judge<'a>(sources: impl IntoIterator<Item = &'a Source>, rule: impl Fn(&Source) -> Vec<String>) {
    let complaints: Vec<String> = sources.into_iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `text` has `word` with nothing wordlike on either side.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The dependencies a manifest names, by table: true for those of tests alone.
fn dependencies(manifest: &str) -> BTreeSet<(bool, String)> {
    let mut found = BTreeSet::new();
    let mut table: Option<bool> = None;
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            let dev = header.contains("dev-dependencies");
            // `[dependencies]`, `[target.….dependencies]`, `[dependencies.smt]`; what the
            // workspace lists is an offer, which only the crates' own tables take up.
            table = (header.contains("dependencies") && !header.starts_with("workspace"))
                .then_some(dev);
            if let Some((_, name)) = header.split_once("dependencies.") {
                found.insert((dev, name.trim_matches('"').to_owned()));
            }
        } else if let Some(dev) = table
            && let Some((key, value)) = line.split_once('=')
            && !line.starts_with('#')
        {
            let name = key.trim().split('.').next().unwrap_or_default().trim_matches('"');
            // A renamed dependency says whose it is.
            let renamed = value.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
            found.insert((dev, renamed.unwrap_or(name).to_owned()));
        }
    }
    found
}

fn package_name(manifest: &str) -> Option<&str> {
    let (_, package) = manifest.split_once("[package]")?;
    let line = package.lines().find(|l| l.starts_with("name"))?;
    line.split('"').nth(1)
}

fn wrong_arrows(name: &str, manifest: &str) -> Vec<String> {
    let allowed = |table: &[(&str, &[&str])], to: &str| {
        table.iter().any(|(from, targets)| *from == name && targets.contains(&to))
    };
    dependencies(manifest)
        .into_iter()
        .filter(|(_, to)| ARROWS.iter().any(|(ours, _)| *ours == to.as_str()))
        .filter(|(dev, to)| !(allowed(ARROWS, to) || *dev && allowed(TEST_ARROWS, to)))
        .map(|(_, to)| format!("{name} must not depend on {to} (the arrows are in tests/tidy.rs)"))
        .collect()
}

#[test]
fn crates_depend_on_each_other_only_along_the_arrows() {
    let sources = sources();
    let manifests: BTreeMap<&str, &str> = sources
        .iter()
        .filter(|s| s.path == "Cargo.toml" || s.path.ends_with("/Cargo.toml"))
        .filter_map(|s| Some((package_name(&s.text)?, s.text.as_str())))
        .collect();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = manifests.keys().copied().collect();
    assert_eq!(found, known, "the crates, and those tests/tidy.rs has arrows for");
    let complaints: Vec<String> =
        manifests.iter().flat_map(|(name, text)| wrong_arrows(name, text)).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn only_the_simulator_can_switch_a_rule_of_the_brain_off() {
    let rule = |s: &Source| {
        let asks = s.text.lines().any(|l| l.starts_with("smt") && l.contains("mutants"));
        let may = s.path == "tests/sim/Cargo.toml";
        if asks && !may { vec![format!("{}: asks for smt's mutants", s.path)] } else { Vec::new() }
    };
    judge(sources().iter().filter(|s| s.path.ends_with("Cargo.toml")), rule);
}

fn unsafe_outside_reactor(source: &Source) -> Vec<String> {
    if source.path.starts_with("reactor/") || source.path == "tests/tidy.rs" {
        return Vec::new();
    }
    let lines = source.text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .filter(|(_, line)| has_word(line, "unsafe") || has_word(line, "unsafe_code"))
        .map(|(at, _)| format!("{}:{}: unsafe outside reactor", source.path, at + 1))
        .collect()
}

#[test]
fn nothing_outside_reactor_is_unsafe() {
    judge(rust(&sources()), unsafe_outside_reactor);
}

fn without_module_doc(source: &Source) -> Vec<String> {
    if source.text.starts_with("//! ") {
        Vec::new()
    } else {
        vec![format!("{}: must open with what it is (`//! …`)", source.path)]
    }
}

#[test]
fn every_rust_file_opens_with_what_it_is() {
    judge(rust(&sources()), without_module_doc);
}

fn too_long(source: &Source) -> Vec<String> {
    match source.text.lines().count() {
        lines if lines > RUST_LINES_MAX => {
            vec![format!("{}: {lines} lines, at most {RUST_LINES_MAX}", source.path)]
        }
        _ => Vec::new(),
    }
}

#[test]
fn no_rust_file_outgrows_a_reader() {
    judge(rust(&sources()), too_long);
}

fn unfinished(source: &Source) -> Vec<String> {
    if source.path == "tests/tidy.rs" {
        return Vec::new();
    }
    let marks = ["todo!", "unimplemented!", "FIXME", "XXX"];
    let lines = source.text.lines().enumerate();
    lines
        .flat_map(|(at, line)| {
            let found = marks.into_iter().filter(|mark| {
                // A macro's name ends in a sign, so only its start can be part of a longer word.
                has_word(line, mark.trim_end_matches('!')) && line.contains(mark)
            });
            found.map(move |mark| format!("{}:{}: {mark}", source.path, at + 1))
        })
        .collect()
}

#[test]
fn no_rust_file_is_unfinished() {
    judge(rust(&sources()), unfinished);
}

fn machine_paths(source: &Source) -> Vec<String> {
    let roots = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let lines = source.text.lines().enumerate();
    lines
        .filter(|(_, line)| {
            roots.iter().any(|root| {
                // A path of its own, not the middle of `a/home/b` or of a longer word.
                line.match_indices(root).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| is_word(c) || "./}-".contains(c))
                })
            })
        })
        .map(|(at, line)| format!("{}:{}: a path of one machine: {line}", source.path, at + 1))
        .collect()
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    judge(&sources(), machine_paths);
}

/// Targets of a page's links that are files here.
fn links(text: &str) -> Vec<&str> {
    let mut in_code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        found.extend(line.split("](").skip(1).filter_map(|rest| {
            let target = rest.split(')').next()?.split('#').next()?;
            (!target.is_empty() && !target.contains("://")).then_some(target)
        }));
    }
    found
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    judge(sources().iter().filter(|s| s.path.ends_with(".md")), |page| {
        let folder = Path::new(&page.path).parent().map(PathBuf::from).unwrap_or_default();
        links(&page.text)
            .into_iter()
            .filter(|target| !root().join(&folder).join(target).exists())
            .map(|target| format!("{}: there is no {target}", page.path))
            .collect()
    });
}

/// What is wrong with a decision page: its name begins with its date, its text repeats that date,
/// and the list of decisions has it.
fn undated_or_unlisted(page: &Source, list: &str) -> Vec<String> {
    let name = page.path.rsplit('/').next().unwrap_or_default();
    let is_date = |text: &str| {
        text.len() == 10
            && text.chars().enumerate().all(|(at, c)| match at {
                4 | 7 => c == '-',
                _ => c.is_ascii_digit(),
            })
    };
    let mut complaints = Vec::new();
    match name.get(..10).filter(|date| is_date(date)) {
        None => complaints.push(format!("{}: must begin with its date", page.path)),
        Some(date) if !page.text.contains(&format!("Date: {date}")) => {
            complaints.push(format!("{}: must say `Date: {date}`", page.path));
        }
        Some(_) => {}
    }
    if !links(list).contains(&name) {
        complaints.push(format!("{}: docs/decisions/README.md does not list it", page.path));
    }
    complaints
}

#[test]
fn every_decision_is_dated_and_listed() {
    let sources = sources();
    let (lists, pages): (Vec<&Source>, Vec<&Source>) = sources
        .iter()
        .filter(|s| s.path.starts_with("docs/decisions/"))
        .partition(|s| s.path == "docs/decisions/README.md");
    let list = lists.first().expect("there is a list of decisions");
    assert!(!pages.is_empty(), "there are decisions");
    judge(pages, |page| undated_or_unlisted(page, &list.text));
}

/// The variants of the enum `name` in `text`.
fn variants<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let Some((_, body)) = text.split_once(&format!("pub enum {name} {{")) else {
        return Vec::new();
    };
    let body = body.split("\n}").next().unwrap_or_default();
    body.lines()
        .map(str::trim)
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.trim_end_matches(','))
        .collect()
}

#[test]
fn every_mutant_is_named_in_the_page_about_testing() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("it is in the checkout");
    let config = read("smt/src/config.rs");
    let page = read("docs/testing.md");
    let mutants = variants(&config, "Mutant");
    assert!(mutants.len() >= 20, "only {} mutants found in smt/src/config.rs", mutants.len());
    let unnamed: Vec<&str> =
        mutants.into_iter().filter(|m| !page.contains(&format!("`{m}`"))).collect();
    assert!(unnamed.is_empty(), "docs/testing.md does not name {unnamed:?}");
}

#[test]
fn the_rules_notice_what_they_are_for() {
    let file = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let unsafe_block = file("smt/src/a.rs", "//! A.\nlet x = unsafe { y };\n");
    assert_eq!(unsafe_outside_reactor(&unsafe_block).len(), 1);
    assert_eq!(unsafe_outside_reactor(&file("a.rs", "#![allow(unsafe_code)]")).len(), 1);
    assert!(unsafe_outside_reactor(&file("a.rs", "// unsafe here\nfn unsafely() {}")).is_empty());
    assert_eq!(without_module_doc(&file("a.rs", "fn main() {}")).len(), 1);
    assert_eq!(too_long(&file("a.rs", &"x\n".repeat(RUST_LINES_MAX + 1))).len(), 1);
    assert_eq!(unfinished(&file("a.rs", "todo!()\n// FIXME: x\n// XXX\n")).len(), 3);
    assert!(unfinished(&file("a.rs", "\"a.XXXXXX\"; not_todo!();")).is_empty());
    assert_eq!(machine_paths(&file("a.md", concat!("see /ro", "ot/x"))).len(), 1);
    assert!(machine_paths(&file("a.md", concat!("https://a.b/ho", "me/x"))).is_empty());
    assert_eq!(links("[a](b.md#c) [d](https://e)\n```\n[f](g)\n```\n"), ["b.md"]);
    let dated = file("docs/decisions/2026-01-02-a.md", "# A\n\nDate: 2026-01-02\n");
    assert!(undated_or_unlisted(&dated, "[a](2026-01-02-a.md)").is_empty());
    assert_eq!(undated_or_unlisted(&dated, "").len(), 1);
    assert_eq!(undated_or_unlisted(&file("docs/decisions/a.md", ""), "").len(), 2);
    assert_eq!(
        variants("pub enum E {\n    /// Doc.\n    One,\n    Two,\n}\n", "E"),
        ["One", "Two"]
    );

    let manifest = "[package]\nname = \"smt\"\n[dependencies]\nserde = \"1\"\n\
        brain = { package = \"pfm\", path = \"../pfm\" }\n[dev-dependencies]\nsim.workspace = true\n\
        [target.'cfg(unix)'.dependencies.reactor]\npath = \"../reactor\"\n";
    assert_eq!(package_name(manifest), Some("smt"));
    let wrong = wrong_arrows("smt", manifest);
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    assert!(wrong_arrows("petrel", "[dev-dependencies]\nsim.workspace = true\n").is_empty());
    assert_eq!(wrong_arrows("petrel", "[dependencies]\nsim.workspace = true\n").len(), 1);
}
