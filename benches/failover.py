#!/usr/bin/python3
"""Failover: the longest a client waits when a server is killed or stopped.

Starts a cluster of its own, writes and reads 4 KiB at random over NBD with a few requests in
flight, strikes each server in turn, and prints the longest request around each strike. A bench and
not a test: the figures are of this machine, now.
"""
import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time

import nbd

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--petrel", default="petrel", help="the petrel binary")
ap.add_argument("--servers", type=int, default=3)
ap.add_argument("--replicas", type=int, default=2)
ap.add_argument("--strike", choices=["kill", "stop"], default="kill",
                help="kill -9, or SIGSTOP for five seconds")
ap.add_argument("--rounds", type=int, default=1)
ap.add_argument("--depth", type=int, default=8)
args = ap.parse_args()

work = tempfile.mkdtemp(prefix="petrel-failover.")
directory = os.path.join(work, "cluster")


def petrel(*words):
    return subprocess.run([args.petrel, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


facts = petrel("dev", "--dir", directory, "--servers", str(args.servers), "--replicas",
               str(args.replicas), "--segment-size", "64MiB", "--volume", "vol0:512MiB", "--detach")
uri = next(l.split(" ", 1)[1] for l in facts.splitlines() if l.startswith("nbd: "))
os.environ["PETREL_CLUSTER"] = next(l.split(" ", 1)[1] for l in facts.splitlines() if l.startswith("http: "))
urls = [l.split(" ", 1)[1] for l in facts.splitlines() if l.startswith("http: ")]
os.environ["PETREL_CLUSTER"] = ",".join(urls)


def pid_of(server):
    out = subprocess.run(["pgrep", "-f", f"storaged --config {directory}/server-{server}/"],
                         stdout=subprocess.PIPE, text=True).stdout.split()
    return int(out[0]) if out else None


def whole():
    try:
        s = json.loads(petrel("status", "--json"))
    except subprocess.CalledProcessError:
        return False
    return s["health"] == "ok" and s["segments"]["healthy"] == s["segments"]["total"]


def wait_whole(limit=120):
    since = time.monotonic()
    while not whole():
        if time.monotonic() - since > limit:
            raise SystemExit(f"not whole {limit} s later")
        time.sleep(0.3)


h = nbd.NBD()
h.connect_uri(uri)
size = h.get_size()
in_flight = collections.OrderedDict()
spans = []
errors = []


def issue():
    offset = random.randrange(size // 4096) * 4096
    began = time.monotonic()
    key = issue.n = issue.n + 1

    def done(err):
        ended = time.monotonic()
        in_flight.pop(key)
        spans.append((began, ended))
        if err.value:
            errors.append(err.value)
        return 1

    in_flight[key] = began
    if random.random() < 0.5:
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(os.urandom(4096))), offset, completion=done)
    else:
        h.aio_pread(nbd.Buffer(4096), offset, completion=done)


issue.n = 0


def run(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        while len(in_flight) < args.depth:
            issue()
        h.poll(20)


try:
    print(f"{'strike':6} {'server':>6} {'leads':>5} {'primaries':>9} {'longest ms':>10}  next longest ms")
    for _ in range(args.rounds):
        for server in range(1, args.servers + 1):
            run(2)
            wait_whole()
            run(1)
            leader = json.loads(petrel("status", "--json"))["leader"]
            segments = json.loads(petrel("segment", "list", "vol0", "--json"))["segments"]
            primaries = sum(s["primary"] == server for s in segments)
            pid = pid_of(server)
            spans.clear()
            struck = time.monotonic()
            os.kill(pid, signal.SIGKILL if args.strike == "kill" else signal.SIGSTOP)
            run(5)
            if args.strike == "stop":
                os.kill(pid, signal.SIGCONT)
            run(4)
            longest = sorted((e - b for b, e in spans if e >= struck), reverse=True)[:24]
            shown = " ".join(f"{1000 * l:.0f}" for l in longest[args.depth::args.depth])
            print(f"{args.strike:6} {server:>6} {'yes' if leader == server else 'no':>5} {primaries:>9} "
                  f"{1000 * longest[0]:>10.0f}  {shown}", flush=True)
    print(f"errors a client saw: {len(errors)}")
finally:
    subprocess.run([args.petrel, "dev", "--stop", "--dir", directory], stdout=subprocess.DEVNULL)
    shutil.rmtree(work, ignore_errors=True)
