"""NBD clients of fencing.test.sh, each a command. Run with /usr/bin/python3, whose libnbd is Debian's.

vol0 has 128 MiB in two segments. A pattern is a byte for each of its blocks that are looked at.
"""
import errno
import os
import signal
import sys
import time

import nbd

BLOCK = 4096
# Of the check under load: each is written in turn, again and again.
LOOP_BLOCKS = 512
# Of the patterns and of the flood: spread over 96 MiB, so that two primaries have them.
WIDE_BLOCKS = 1536
WIDE_STRIDE = 16 * BLOCK


def connect(socket):
    handle = nbd.NBD()
    handle.set_export_name("vol0")
    handle.connect_unix(socket)
    return handle


def wide_offset(block):
    return block * WIDE_STRIDE


def pattern(seed, block):
    return bytes([(seed + block) % 251 + 1]) * BLOCK


def write(socket, seed):
    handle = connect(socket)
    for block in range(WIDE_BLOCKS):
        handle.pwrite(pattern(int(seed), block), wide_offset(block))
    handle.flush()
    print(f"wrote pattern {seed}")


def read(socket, seed):
    handle = connect(socket)
    for block in range(WIDE_BLOCKS):
        found = bytes(handle.pread(BLOCK, wide_offset(block)))
        if found != pattern(int(seed), block):
            sys.exit(f"block {block}: found {found[:2].hex()}…, not pattern {seed}")
    print(f"read pattern {seed} back")


def loop_block(number):
    return number.to_bytes(8, "little") * (BLOCK // 8)


def write_until_fenced(socket, journal):
    """One write after the other; the number of each that was acknowledged goes to the journal."""
    handle = connect(socket)
    with open(journal, "w", encoding="ascii", buffering=1) as acknowledged:
        for number in range(1, 1_000_000):
            try:
                handle.pwrite(loop_block(number), number % LOOP_BLOCKS * BLOCK)
            except nbd.Error as error:
                if error.errnum != errno.ESHUTDOWN:
                    sys.exit(f"write {number}: {error}, not ESHUTDOWN")
                print(f"ESHUTDOWN after {number - 1} acknowledged writes")
                break
            acknowledged.write(f"{number}\n")
        else:
            sys.exit("it was never fenced")
    # And so is all that comes after, until the connection is closed.
    try:
        handle.pwrite(loop_block(0), 0)
    except nbd.Error:
        return
    sys.exit("a write after the fence was acknowledged")


def check(socket, journal, writer):
    """The new holder finds every write that the old one acknowledged, or one that came after it."""
    handle = connect(socket)
    # The first answer means that the fence is complete: whoever wrote before has ended, or will.
    first = bytes(handle.pread(LOOP_BLOCKS * BLOCK, 0))
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{writer}") and state(writer) != "Z":
        if time.monotonic() > deadline:
            sys.exit("the old holder's client goes on")
        time.sleep(0.05)
    again = bytes(handle.pread(LOOP_BLOCKS * BLOCK, 0))
    if again != first:
        sys.exit("something changed after the fence")
    with open(journal, encoding="ascii") as acknowledged:
        numbers = [int(line) for line in acknowledged]
    newest = {number % LOOP_BLOCKS: number for number in numbers}
    for block, number in newest.items():
        found = first[block * BLOCK : (block + 1) * BLOCK]
        # At most one write was under way unacknowledged.
        if found not in (loop_block(number), loop_block(numbers[-1] + 1)):
            sys.exit(f"block {block}: acknowledged {number}, found {found[:8].hex()}")
    print(f"ok: all {len(numbers)} acknowledged writes are there, and nothing came after the fence")


def state(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def flood(socket, bridge):
    """Hundreds of writes in flight, the bridge stopped among them. None may be acknowledged after
    it was taken over; that none lands is what the other side looks at."""
    handle = connect(socket)
    data = nbd.Buffer.from_bytearray(bytearray(b"\xee" * BLOCK))
    cookies = []
    for block in range(WIDE_BLOCKS):
        cookies.append(handle.aio_pwrite(data, wide_offset(block)))
        if block == WIDE_BLOCKS // 3:
            os.kill(int(bridge), signal.SIGSTOP)
            break
    # The rest goes to the socket of a bridge that does not read.
    for block in range(WIDE_BLOCKS // 3 + 1, WIDE_BLOCKS // 3 + 200):
        cookies.append(handle.aio_pwrite(data, wide_offset(block)))
    open_writes = {cookie for cookie in cookies if not done(handle, cookie)}
    print(f"stopped with {len(open_writes)} writes in flight", flush=True)
    if not open_writes:
        sys.exit("nothing was in flight when it was stopped")
    refused = 0
    deadline = time.monotonic() + 60
    while open_writes and time.monotonic() < deadline:
        for cookie in list(open_writes):
            try:
                if not handle.aio_command_completed(cookie):
                    continue
            except nbd.Error as error:
                if error.errnum not in (errno.ESHUTDOWN, errno.ENOTCONN):
                    sys.exit(f"a write ended with {error}, not ESHUTDOWN")
                refused += error.errnum == errno.ESHUTDOWN
            open_writes.discard(cookie)
        try:
            if open_writes:
                handle.poll(100)
        except nbd.Error:
            # The connection is closed; what has an answer has had it.
            time.sleep(0.01)
    if open_writes or not refused:
        sys.exit(f"{len(open_writes)} writes never ended, {refused} were refused with ESHUTDOWN")
    print(f"{refused} writes were refused with ESHUTDOWN")


def done(handle, cookie):
    try:
        return handle.aio_command_completed(cookie)
    except nbd.Error:
        return False


if __name__ == "__main__":
    commands = {
        "write": write,
        "read": read,
        "write-until-fenced": write_until_fenced,
        "check": check,
        "flood": flood,
    }
    commands[sys.argv[1]](*sys.argv[2:])
