//! `petrel dev` with fake daemons: what it prints, what it keeps alive, what it refuses, and that
//! nothing of it is left behind.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::fake::{Ran, command};

/// Far more than anything here takes, even on a machine that is busy elsewhere.
const PATIENCE: Duration = Duration::from_secs(40);

/// A directory for a cluster and the fake daemons to run it with.
struct Lab {
    temp: TempDir,
}

impl Lab {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in [
            ("storaged", include_str!("fake_storaged.py")),
            ("nbd-bridge", include_str!("fake_nbd_bridge.py")),
        ] {
            let path = temp.path().join(name);
            fs::write(&path, text).expect("writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        }
        Self { temp }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("c")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&["dev", "--dir"]);
        command
            .arg(self.dir())
            .args(arguments)
            .env("PETREL_STORAGED", self.temp.path().join("storaged"))
            .env("PETREL_NBD_BRIDGE", self.temp.path().join("nbd-bridge"));
        command
    }

    /// Runs to its end: what is refused, fails, or is detached.
    fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(&[], arguments)
    }

    fn run_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        let output = command.envs(variables.iter().copied()).output();
        Ran::new(arguments, &output.expect("petrel can be run"))
    }

    /// Starts in the foreground and waits until it is ready.
    fn start(&self, arguments: &[&str]) -> Foreground {
        self.start_with(&[], arguments)
    }

    fn start_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Foreground {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("petrel can be run");
        let mut stdout = child.stdout.take().expect("it is piped");
        // All the lines come in one write, so one read of enough bytes gets them all.
        let mut bytes = vec![0; 65_536];
        let count = stdout.read(&mut bytes).expect("readable");
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(text.starts_with("petrel: ready\n"), "it printed {text:?}");
        Foreground { child, stdout: BufReader::new(stdout), text }
    }

    fn events(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir().join("events")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn stop(&self) -> Ran {
        self.run(&["--stop"])
    }
}

impl Drop for Lab {
    /// A failed test must not leave a cluster in the background.
    fn drop(&mut self) {
        if self.dir().exists() {
            self.stop();
        }
    }
}

struct Foreground {
    child: Child,
    stdout: BufReader<ChildStdout>,
    text: String,
}

impl Foreground {
    fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("readable");
        line.trim_end().to_owned()
    }

    fn expect_end(&mut self, code: i32) {
        let ended = wait_until(|| self.child.try_wait().expect("it is ours"));
        assert_eq!(ended.code(), Some(code));
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn send_signal(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.expect("kill can be run").success());
}

fn is_alive(pid: u32) -> bool {
    // A zombie is dead; nobody of ours has reaped it yet.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim().starts_with('Z'))
}

#[track_caller]
fn wait_until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The pids of `pid:` lines, by name.
fn pids(text: &str) -> Vec<(String, u32)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("pid: "))
        .map(|line| {
            let (name, pid) = line.split_once(' ').expect("a name and a pid");
            (name.to_owned(), pid.parse().expect("a number"))
        })
        .collect()
}

fn pid_of(text: &str, name: &str) -> u32 {
    let found = pids(text).into_iter().find(|(known, _)| known == name);
    found.expect("it is printed").1
}

fn https(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("http: ")).collect()
}

fn wait_until_dead(pids: &[(String, u32)]) {
    for (_, pid) in pids {
        wait_until(|| (!is_alive(*pid)).then_some(()));
    }
}

#[test]
fn the_lines_come_in_the_contracts_order_and_a_stop_leaves_nothing_alive() {
    let lab = Lab::new();
    let mut cluster = lab.start(&["--volume", "a:1G", "--volume", "b:512MiB"]);
    let socket = lab.dir().join("nbd.sock");
    let lines: Vec<&str> = cluster.text.lines().collect();
    assert_eq!(lines[1], format!("nbd: nbd+unix:///a?socket={}", socket.display()));
    assert_eq!(lines[2], format!("nbd: nbd+unix:///b?socket={}", socket.display()));
    let ports: Vec<u16> = lines[3..6]
        .iter()
        .map(|line| line.strip_prefix("http: http://127.0.0.1:").expect("an http line"))
        .map(|port| port.parse().expect("a port"))
        .collect();
    assert_eq!([ports[1], ports[2]], [ports[0] + 1, ports[0] + 2]);
    let names: Vec<String> = pids(&cluster.text).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["1", "2", "3", "nbd-bridge"]);
    assert_eq!(lines.len(), 1 + 2 + 3 + 4);
    assert!(pids(&cluster.text).iter().all(|(_, pid)| is_alive(*pid)));

    cluster.signal("-TERM");
    cluster.expect_end(0);
    assert!(pids(&cluster.text).iter().all(|(_, pid)| !is_alive(*pid)));
    let events = lab.events();
    let ends: Vec<&String> = events.iter().filter(|e| e.ends_with("terminated")).collect();
    assert_eq!(ends.len(), 4, "{events:?}");
    assert_eq!(ends[0], "nbd-bridge terminated", "the bridge goes first: {events:?}");
}

#[test]
fn a_second_start_finds_the_same_cluster_and_does_not_bootstrap_again() {
    let lab = Lab::new();
    let first = lab.run(&["--servers", "2", "--detach"]).expect_code(0).stdout;
    let conflict = lab.run(&[]).expect_code(3);
    assert!(conflict.stderr.contains("already running"), "{}", conflict.stderr);
    lab.run(&["--detach"]).expect_code(3);
    lab.stop().expect_code(0);
    let second = lab.run(&["--detach"]).expect_code(0).stdout;
    assert_eq!(https(&first), https(&second), "the ports are remembered");
    assert!(second.contains("nbd: nbd+unix:///vol0?"), "{second}");
    let started: Vec<String> = lab
        .events()
        .into_iter()
        .filter(|event| event.starts_with("server") && event.contains("started"))
        .collect();
    let bootstraps = started.iter().filter(|event| event.ends_with("=true")).count();
    assert_eq!((started.len(), bootstraps), (4, 1), "{started:?}");
}

#[test]
fn a_detached_cluster_outlives_its_starter_and_is_stopped_by_directory() {
    let lab = Lab::new();
    let ran = lab.run(&["--detach"]).expect_code(0);
    assert!(ran.stdout.starts_with("petrel: ready\n"), "{}", ran.stdout);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    let children = pids(&ran.stdout);
    assert_eq!(children.len(), 4);
    assert!(children.iter().all(|(_, pid)| is_alive(*pid)));
    let supervisor: u32 = fs::read_to_string(lab.dir().join("petrel-dev.pid"))
        .expect("readable")
        .trim()
        .parse()
        .expect("a pid");
    assert!(is_alive(supervisor));

    let stopped = lab.stop().expect_code(0);
    assert!(stopped.stdout.contains("stopped"), "{}", stopped.stdout);
    assert!(!is_alive(supervisor));
    assert!(children.iter().all(|(_, pid)| !is_alive(*pid)));
    let again = lab.stop().expect_code(0);
    assert!(again.stdout.contains("no cluster was running"), "{}", again.stdout);
    let elsewhere = lab.dir().join("nowhere");
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    crate::fake::petrel(&["dev", "--stop", "--dir", elsewhere]).expect_code(1);
}

#[test]
fn a_child_that_dies_is_started_again_and_its_new_pid_printed() {
    let lab = Lab::new();
    let mut cluster = lab.start(&[]);
    for name in ["2", "nbd-bridge"] {
        let old = pid_of(&cluster.text, name);
        let killed = Instant::now();
        send_signal(old, "-KILL");
        let line = cluster.next_line();
        assert!(killed.elapsed() >= Duration::from_millis(950), "{:?}", killed.elapsed());
        let new = pid_of(&line, name);
        assert_ne!(old, new);
        assert!(is_alive(new));
    }
    cluster.signal("-INT");
    cluster.expect_end(0);
}

#[test]
fn without_restart_a_dead_child_stays_dead() {
    let lab = Lab::new();
    let mut cluster = lab.start(&["--no-restart"]);
    send_signal(pid_of(&cluster.text, "1"), "-KILL");
    // Nothing is to happen, so there is nothing to wait for but the time in which it would.
    std::thread::sleep(Duration::from_millis(2_000));
    let starts = lab.events().iter().filter(|e| e.starts_with("server 1 started")).count();
    assert_eq!(starts, 1);
    cluster.signal("-TERM");
    cluster.expect_end(0);
}

#[test]
fn children_die_with_a_killed_parent_and_the_next_start_gets_its_ports_back() {
    let lab = Lab::new();
    let mut cluster = lab.start(&["--servers", "2", "--nbd", "tcp:127.0.0.1:21809"]);
    assert!(cluster.text.contains("\nnbd: nbd://127.0.0.1:21809/vol0\n"), "{}", cluster.text);
    let children = pids(&cluster.text);
    cluster.signal("-KILL");
    cluster.child.wait().expect("it is ours");
    let again = lab.start(&[]);
    assert_eq!(https(&cluster.text), https(&again.text));
    assert!(again.text.contains("nbd://127.0.0.1:21809/vol0"), "{}", again.text);
    wait_until_dead(&children);
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_in_the_end() {
    let lab = Lab::new();
    let mut cluster = lab.start_with(&[("FAKE_DEAF", "1")], &["--servers", "1"]);
    cluster.signal("-TERM");
    cluster.expect_end(0);
    wait_until_dead(&pids(&cluster.text));
}

#[test]
fn what_contradicts_the_directory_is_refused_and_what_is_new_is_created() {
    let lab = Lab::new();
    lab.run(&["--volume", "a:1G", "--segment-size", "64MiB", "--detach"]).expect_code(0);
    lab.stop().expect_code(0);
    for (line, part) in [
        (["--servers", "4"], "--servers 3, not 4"),
        (["--replicas", "3"], "--replicas 2, not 3"),
        (["--segment-size", "1G"], "--segment-size 64 MiB, not 1 GiB"),
        (["--volume", "a:2G"], "--volume a of 1 GiB, not 2 GiB"),
    ] {
        let ran = lab.run(&line).expect_code(3);
        assert!(ran.stderr.contains(part), "{part} is not in {}", ran.stderr);
        lab.run(&[line[0], line[1], "--detach"]).expect_code(3);
    }
    let line = ["--servers", "3", "--volume", "a:1G", "--volume", "b:2G", "--detach"];
    let ran = lab.run(&line).expect_code(0).stdout;
    assert!(ran.contains("///a?") && ran.contains("///b?"), "{ran}");
}

#[test]
fn a_deleted_volume_stays_deleted() {
    let lab = Lab::new();
    lab.run(&["--volume", "a:1G", "--volume", "b:1G", "--detach"]).expect_code(0);
    let state = lab.dir().join("fake-volumes.json");
    let text = fs::read_to_string(&state).expect("readable");
    let mut volumes: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    volumes.retain(|volume| volume["name"] != "a");
    fs::write(&state, serde_json::to_vec(&volumes).expect("JSON")).expect("writable");
    lab.stop().expect_code(0);
    let ran = lab.run(&["--detach"]).expect_code(0).stdout;
    assert!(!ran.contains("///a?") && ran.contains("///b?"), "{ran}");
}

#[test]
fn two_clusters_on_one_machine_do_not_clash() {
    let (one, other) = (Lab::new(), Lab::new());
    let a = std::thread::scope(|scope| {
        let a = scope.spawn(|| one.run(&["--detach"]).expect_code(0).stdout);
        let b = other.run(&["--detach"]).expect_code(0).stdout;
        let a = a.join().expect("it does not panic");
        for url in https(&a) {
            assert!(!https(&b).contains(&url), "{a}{b}");
        }
        a
    });
    assert_eq!(https(&a).len(), 3);
}

#[test]
fn a_port_in_use_is_named() {
    let lab = Lab::new();
    // The port above a free one is taken, so that server 2 is the one to complain of.
    let (_listener, taken) = wait_until(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let taken = listener.local_addr().expect("it is bound").port();
        let below_is_free = TcpListener::bind(("127.0.0.1", taken - 1)).is_ok();
        below_is_free.then_some((listener, taken))
    });
    let first = format!("127.0.0.1:{}", taken - 1);
    for line in [vec!["--http", &first], vec!["--http", &first, "--detach"]] {
        let ran = lab.run(&line).expect_code(1);
        assert!(ran.stderr.contains(&format!("127.0.0.1:{taken}")), "{}", ran.stderr);
        assert!(ran.stderr.contains("server 2's http port"), "{}", ran.stderr);
    }
    // Nothing was begun, so nothing contradicts another try.
    lab.run(&["--servers", "2", "--detach"]).expect_code(0);
}

#[test]
fn http_ports_count_up_from_the_one_given() {
    let lab = Lab::new();
    let ran = lab.run(&["--http", "127.0.0.1:23501", "--detach"]).expect_code(0).stdout;
    let expected = [1, 2, 3].map(|step| format!("http://127.0.0.1:2350{step}"));
    assert_eq!(https(&ran), expected);
}

#[test]
fn a_child_that_cannot_start_is_shown_with_the_end_of_its_log() {
    let lab = Lab::new();
    for line in [&[][..], &["--detach"]] {
        let ran = lab.run_with(&[("FAKE_DIES", "2")], line).expect_code(1);
        assert!(ran.stdout.is_empty(), "{}", ran.stdout);
        for part in ["server 2", "exit code 7", "made of cheese", "server-2.log"] {
            assert!(ran.stderr.contains(part), "{part} is not in {}", ran.stderr);
        }
        assert_eq!(ran.stderr.matches("error").count(), 1, "said once: {}", ran.stderr);
    }
    let json = lab.run_with(&[("FAKE_DIES", "2")], &["--detach", "--json"]).expect_code(1);
    let problem = json.stderr_json();
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("cheese")), "{problem}");
}

#[test]
fn a_cluster_that_does_not_form_in_time_is_given_up_with_what_it_lacks() {
    let lab = Lab::new();
    let line = ["--startup-timeout-s", "6"];
    let ran = lab.run_with(&[("FAKE_NO_LEADER", "1")], &line).expect_code(1);
    assert!(ran.stderr.contains("no leader has been elected"), "{}", ran.stderr);
    assert!(ran.stderr.contains("server-1.log"), "{}", ran.stderr);
    // A cluster that never formed may still be bootstrapped.
    lab.run(&["--detach"]).expect_code(0);
}

#[test]
fn a_volume_the_cluster_refuses_ends_the_start_with_its_words() {
    let lab = Lab::new();
    let ran = lab.run(&["--volume", "toobig:9E"]).expect_code(3);
    assert!(ran.stderr.contains("too large for us"), "{}", ran.stderr);
}

#[test]
fn a_socket_path_the_kernel_cannot_take_is_a_usage_error() {
    let lab = Lab::new();
    let long = lab.temp.path().join("x".repeat(100));
    let long = long.to_str().expect("UTF-8");
    let ran = crate::fake::petrel(&["dev", "--dir", long]).expect_code(2);
    assert!(ran.stderr.contains("107"), "{}", ran.stderr);
    assert!(!Path::new(long).exists(), "a refusal leaves no trace");
}

#[test]
fn an_address_others_can_reach_needs_insecure() {
    let lab = Lab::new();
    for line in [["--http", "0.0.0.0:23601"], ["--nbd", "tcp:0.0.0.0:23609"]] {
        let ran = lab.run(&line).expect_code(2);
        assert!(ran.stderr.contains("--insecure"), "{}", ran.stderr);
    }
    assert!(!lab.dir().exists());
}

#[test]
fn a_missing_program_is_named_with_where_it_was_looked_for() {
    let lab = Lab::new();
    let ran = lab.run_with(&[("PETREL_STORAGED", "/nonexistent/storaged")], &[]).expect_code(1);
    assert!(ran.stderr.contains("/nonexistent/storaged"), "{}", ran.stderr);
    assert!(ran.stderr.contains("PETREL_STORAGED"), "{}", ran.stderr);
}

#[test]
fn under_json_the_facts_are_one_object() {
    let lab = Lab::new();
    let ran = lab.run(&["--detach", "--json"]).expect_code(0);
    let facts = ran.stdout_json();
    assert_eq!(facts["ready"], true);
    assert_eq!(facts["volumes"][0]["name"], "vol0");
    assert_eq!(facts["servers"].as_array().map(Vec::len), Some(3), "{facts}");
    assert!(facts["nbd_bridge"]["pid"].is_u64(), "{facts}");
    assert_eq!(lab.run(&["--stop", "--json"]).expect_code(0).stdout_json()["stopped"], true);
}
