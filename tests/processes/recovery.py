"""NBD clients of recovery.test.sh, each a command. Run with /usr/bin/python3, whose libnbd is Debian's."""
import errno
import hashlib
import os
import sys
import time

import nbd

BLOCK = 4096


def connect(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def pattern(seed, offset):
    return bytes([(seed * 31 + offset // BLOCK) % 251 + 1]) * BLOCK


def write(uri, seed, start, length):
    handle = connect(uri)
    for offset in range(int(start), int(start) + int(length), BLOCK):
        handle.pwrite(pattern(int(seed), offset), offset)
    handle.flush()
    print(f"wrote pattern {seed}")


def check(uri, seed, start, length):
    """Every block has this pattern; `seed` may be several, by commas: then one of them each."""
    handle = connect(uri)
    seeds = [int(s) for s in seed.split(",")]
    seen = set()
    for offset in range(int(start), int(start) + int(length), BLOCK):
        found = bytes(handle.pread(BLOCK, offset))
        match = [s for s in seeds if found == (pattern(s, offset) if s else bytes(BLOCK))]
        if not match:
            sys.exit(f"offset {offset}: found {found[:4].hex()}, which is none of {seeds}")
        seen.add(match[0])
    print(f"patterns {sorted(seen)}")


def sums(uri, size, *indexes):
    """The SHA-256 of each of these segments."""
    handle = connect(uri)
    for index in indexes:
        digest = hashlib.sha256()
        begin = int(index) * int(size)
        for offset in range(begin, begin + int(size), 1 << 20):
            digest.update(handle.pread(1 << 20, offset))
        print(index, digest.hexdigest())


def left_over(uri, flag):
    """Attached from before. Once the flag is there, what it writes must be refused."""
    handle = connect(uri)
    handle.pwrite(pattern(3, 0), 0)
    print("attached", flush=True)
    while not os.path.exists(flag):
        time.sleep(0.2)
    try:
        handle.pwrite(pattern(9, 0), 0)
    except nbd.Error as error:
        if error.errnum not in (errno.ESHUTDOWN, errno.ENOTCONN, errno.EPIPE, 0):
            raise
        print(f"refused: {error}")
    else:
        sys.exit("a write of a client left over from before was acknowledged")


if __name__ == "__main__":
    COMMANDS = {"write": write, "check": check, "sums": sums, "left-over": left_over}
    COMMANDS[sys.argv[1]](*sys.argv[2:])
