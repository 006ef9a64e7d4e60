"""blocks.py: a client of an NBD export that remembers what it was told.

  blocks.py write URI HISTORY BLOCKS SEED   writes random blocks until SIGTERM, or until an error
  blocks.py check URI HISTORY BLOCKS        reads them all, and compares with the history

Every write has a value of its own, which all bytes of its block follow from. The history has a line
`i BLOCK VALUE` before a write is sent and `a BLOCK VALUE` once it was acknowledged; `e` an error, `s US`
how long the slowest operation of the last second took. A block must hold the value acknowledged last,
or one sent later. Only /usr/bin/python3 has libnbd."""

import errno
import hashlib
import os
import random
import signal
import sys
import time

import nbd

BLOCK = 4096
DEPTH = 8


def content(block, value):
    seed = hashlib.sha256(b"%d %d" % (block, value)).digest()
    return (seed * (BLOCK // len(seed)))


def read_history(path):
    """The newest acknowledged value of each block, and those sent after it."""
    acked, sent = {}, {}
    with open(path, encoding="ascii") as lines:
        for line in lines:
            word = line.split()
            if word[0] == "i":
                sent.setdefault(int(word[1]), []).append(int(word[2]))
            elif word[0] == "a":
                acked[int(word[1])] = int(word[2])
    return acked, sent


def write(uri, path, blocks, seed):
    value = 0
    if os.path.exists(path):
        _, sent = read_history(path)
        value = max((max(values) for values in sent.values()), default=0)
    history = open(path, "a", encoding="ascii", buffering=1)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    source = random.Random(seed)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    busy = {}
    slowest, since, errors = 0.0, time.monotonic(), 0
    while busy or not stop:
        while len(busy) < DEPTH and not stop:
            block = source.randrange(blocks)
            if any(block == other for other, _, _, _ in busy.values()):
                continue
            value += 1
            history.write(f"i {block} {value}\n")
            buffer = nbd.Buffer.from_bytearray(bytearray(content(block, value)))
            cookie = handle.aio_pwrite(buffer, block * BLOCK)
            busy[cookie] = (block, value, time.monotonic(), buffer)
        handle.poll(100)
        for cookie in list(busy):
            block, sent, began, _ = busy[cookie]
            try:
                if not handle.aio_command_completed(cookie):
                    continue
                history.write(f"a {block} {sent}\n")
            except nbd.Error as error:
                errors += 1
                history.write(f"e {errno.errorcode.get(error.errnum, error.errnum)} {block}\n")
            slowest = max(slowest, time.monotonic() - began)
            del busy[cookie]
        if time.monotonic() - since > 1:
            history.write(f"s {int(slowest * 1e6)}\n")
            slowest, since = 0.0, time.monotonic()
    history.write(f"s {int(slowest * 1e6)}\n")
    return 1 if errors else 0


def check(uri, path, blocks):
    acked, sent = read_history(path)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    wrong = 0
    for block in range(blocks):
        data = bytes(handle.pread(BLOCK, block * BLOCK))
        newest = acked.get(block, 0)
        allowed = [v for v in sent.get(block, []) if v >= newest]
        if newest == 0 and data == bytes(BLOCK):
            continue
        if not any(data == content(block, v) for v in allowed):
            older = [v for v in sent.get(block, []) if data == content(block, v)]
            what = f"the older value {older}" if older else "what nobody wrote"
            print(f"block {block}: acknowledged {newest}, sent {allowed}, holds {what}")
            wrong += 1
    print(f"{len(acked)} blocks, {sum(map(len, sent.values()))} writes, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    verb, uri, path, blocks = sys.argv[1:5]
    if verb == "write":
        sys.exit(write(uri, path, int(blocks), int(sys.argv[5])))
    sys.exit(check(uri, path, int(blocks)))
