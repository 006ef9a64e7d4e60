//! The load that servers tell each other of, from a peer's word to the segment an operator sees.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::plane::*;

/// A server that says one thing, to whoever asks it anything. Ends with the process.
fn parrot(word: Arc<Mutex<Value>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = Vec::new();
            let mut piece = [0; 1024];
            while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(bytes) if bytes > 0 => request.extend_from_slice(&piece[..bytes]),
                    Ok(_) | Err(_) => break,
                }
            }
            let body = word.lock().expect("nobody panics with it").to_string();
            let length = body.len();
            // A caller that went away is no concern of a parrot's.
            drop(write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\nconnection: close\r\n\r\n{body}"
            ));
        }
    });
    address
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_load_a_peer_tells_of_is_shown_and_a_word_without_it_is_heard_too() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    let mut older = cluster.get("/internal/word").ok(200);
    assert_eq!(older["heat"], json!([]), "nobody asked this server for anything");
    older["score"]["server"] = json!(2);
    older.as_object_mut().expect("an object").remove("heat");
    let word = Arc::new(Mutex::new(older.clone()));
    cluster.register(2, &parrot(Arc::clone(&word)), CAPACITY_BYTES);
    wait_for("a word of an older server is heard", || {
        let servers = cluster.get("/v1/servers").ok(200);
        servers["servers"][1]["state"] == "up"
    });
    cluster.create("vol0", 2, 2);
    let segments = || cluster.get("/v1/segments?volume=vol0").ok(200)["segments"].clone();
    let idle = segments();
    assert_eq!(
        (&idle[0]["reads_per_second"], &idle[0]["writes_per_second"]),
        (&json!(0.0), &json!(0.0))
    );

    let id: u64 = idle[1]["id"].as_str().and_then(|id| id.parse().ok()).expect("a number");
    let mut hot = older;
    hot["heat"] = json!([[id, 5.0, 7.5, 20480.0, 30720.0]]);
    *word.lock().expect("nobody panics with it") = hot;
    wait_for("the load is shown", || segments()[1]["reads_per_second"] != json!(0.0));
    let now = segments();
    // It fades by 1/60 a second while nothing is heard.
    let near = |key: &str, told: f64| {
        let shown = now[1][key].as_f64().expect("a number");
        assert!(shown > told * 0.9 && shown <= told, "{key} = {shown}, told {told}");
    };
    near("reads_per_second", 5.0);
    near("writes_per_second", 7.5);
    near("read_bytes_per_second", 20_480.0);
    near("written_bytes_per_second", 30_720.0);
    assert_eq!(now[0]["reads_per_second"], json!(0.0), "the other one is idle");
}
