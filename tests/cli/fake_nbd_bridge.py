#!/usr/bin/env python3
"""Stands in for nbd-bridge in the tests of `petrel dev`: listens where it is told, accepts, and
ends as a daemon must. What it does goes to the file `events` beside the log directory's parent."""
import os, signal, socket, sys, threading

arguments = sys.argv[1:]
assert arguments[0] == "--cluster" and arguments[1].startswith("http://127.0.0.1:"), arguments
assert arguments[2] == "--listen" and "--exit-on-stdin-close" in arguments, arguments
# Our stderr is DIR/logs/nbd-bridge.log.
home = os.path.dirname(os.path.dirname(os.readlink("/proc/self/fd/2")))


def note(event):
    with open(os.path.join(home, "events"), "a") as file:
        file.write(f"nbd-bridge {event}\n")


def leave(why):
    note(why)
    os._exit(0)


def watch_stdin():
    sys.stdin.buffer.read()
    leave("orphaned")


kind, address = arguments[3].split(":", 1)
if kind == "unix":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
else:
    host, port = address.rsplit(":", 1)
    listener = socket.create_server((host, int(port)))
listener.listen()
note("started")
signal.signal(signal.SIGTERM, lambda *_: leave("terminated"))
threading.Thread(target=watch_stdin, daemon=True).start()
while True:
    listener.accept()[0].close()
