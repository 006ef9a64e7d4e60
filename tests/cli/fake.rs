//! Runs `petrel` and stands in for a server: one thread, one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// What a run of `petrel` left behind.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    line: String,
}

impl Ran {
    pub fn new(line: &[&str], output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            line: line.join(" "),
        }
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "petrel {}\nstdout: {}\nstderr: {}",
            self.line,
            self.stdout,
            self.stderr
        );
        self
    }

    #[track_caller]
    pub fn stdout_json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("stdout is one JSON value")
    }

    #[track_caller]
    pub fn stderr_json(&self) -> Value {
        serde_json::from_str(&self.stderr).expect("stderr is one JSON value")
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_petrel"));
    command.args(arguments).env_remove("PETREL_CLUSTER").stdin(Stdio::null());
    command
}

pub fn petrel(arguments: &[&str]) -> Ran {
    petrel_with(&[], arguments)
}

pub fn petrel_with(variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let mut command = command(arguments);
    command.envs(variables.iter().copied());
    let output = command.output().expect("petrel can be run");
    Ran::new(arguments, &output)
}

/// With a stdout whose reader is gone before the first byte.
pub fn petrel_with_closed_stdout(arguments: &[&str]) -> Ran {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = command(arguments);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    Ran::new(arguments, &output.expect("petrel can be run"))
}

/// A URL nobody listens on.
pub fn unused_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("it is bound"))
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    body: Vec<u8>,
}

impl Request {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

pub enum Answer {
    Http {
        status: u16,
        body: String,
    },
    /// Take the request and close the connection.
    Hangup,
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::raw(status, &body.to_string())
    }

    pub fn raw(status: u16, body: &str) -> Self {
        Self::Http { status, body: body.to_owned() }
    }

    pub fn not_found() -> Self {
        let problem = json!({"type": "about:blank", "title": "Not found", "status": 404,
            "detail": "there is no such thing"});
        Self::json(404, &problem)
    }
}

pub struct FakeServer {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeServer {
    /// Answers every request with `answer(request, own url)` until dropped.
    pub fn start(mut answer: impl FnMut(&Request, &str) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (own, log, stopped) = (url.clone(), Arc::clone(&requests), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Some(request) = read_request(&stream) else {
                    continue;
                };
                let answer = answer(&request, &own);
                log.lock().expect("no test panics while it holds this").push(request);
                send(stream, &answer);
            }
        });
        Self { url, requests, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Everything asked so far.
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.requests.lock();
        requests.expect("the server does not panic while it holds this").clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let address = self.url.trim_start_matches("http://");
        let woken = TcpStream::connect(address).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the fake server panicked");
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut words = first.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut body_bytes = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            body_bytes = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; body_bytes];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, body })
}

fn send(mut stream: TcpStream, answer: &Answer) {
    let Answer::Http { status, body } = answer else {
        return;
    };
    let bytes = body.len();
    let text = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n\
         Content-Length: {bytes}\r\nConnection: close\r\n\r\n{body}"
    );
    // A client that has gone does not mind.
    drop(stream.write_all(text.as_bytes()));
}
