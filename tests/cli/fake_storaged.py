#!/usr/bin/env python3
"""Stands in for storaged in the tests of `petrel dev`: takes its command line and configuration,
serves the few HTTP routes `petrel dev` uses, and ends as a daemon must.

What the servers of one cluster share lies in files of DIR (the parent of server-N).
FAKE_DIES=ID       server ID writes to its log and exits with 7
FAKE_NO_LEADER=1   nobody is ever elected
FAKE_DEAF=ID       server ID ignores SIGTERM
"""
import fcntl, json, os, signal, socket, sys, threading, tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

arguments = sys.argv[1:]
assert arguments[0] == "--config" and "--exit-on-stdin-close" in arguments, arguments
with open(arguments[1], "rb") as file:
    config = tomllib.load(file)
assert set(config) == {"id", "data_dir", "listen", "http", "zone", "region", "tier", "bootstrap",
                       "allow_faults", "peers"}, config
assert os.path.isdir(config["data_dir"])
me = config["id"]
home = os.path.dirname(os.path.dirname(config["data_dir"]))


def note(event):
    with open(os.path.join(home, "events"), "a") as file:
        file.write(f"server {me} {event}\n")


def volumes(change=None):
    with open(os.path.join(home, "fake-volumes.json"), "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = json.loads(file.read() or "[]")
        if change and not any(v["name"] == change["name"] for v in known):
            known.append(change)
            file.truncate(0)
            file.write(json.dumps(known))
        return known


def state(http):
    host, port = http.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
        return "up"
    except OSError:
        return "down"


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/cluster":
            leader = None if os.environ.get("FAKE_NO_LEADER") else 1
            servers = [{"id": peer["id"], "state": state(peer["http"])} for peer in config["peers"]]
            self.answer(200, {"leader": leader, "servers": servers})
        elif self.path == "/v1/volumes":
            self.answer(200, {"volumes": volumes()})
        else:
            self.answer(404, {"title": "Not found", "status": 404, "detail": self.path})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["name"] == "toobig":
            self.answer(507, {"title": "No space", "status": 507, "detail": "too large for us"})
        else:
            volumes(body)
            self.answer(201, body)

    def log_message(self, *_):
        pass


def leave(why):
    note(why)
    os._exit(0)


def watch_stdin():
    sys.stdin.buffer.read()
    leave("orphaned")


note(f"started bootstrap={str(config['bootstrap']).lower()}")
if os.environ.get("FAKE_DIES") == str(me):
    print("open the store: it is made of cheese", file=sys.stderr, flush=True)
    sys.exit(7)
if os.environ.get("FAKE_DEAF") == str(me):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: leave("terminated"))
threading.Thread(target=watch_stdin, daemon=True).start()
host, port = config["http"].rsplit(":", 1)
ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
