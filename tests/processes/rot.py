"""What rot.test.sh does to a volume and to the files beneath it, each a command.

Run with /usr/bin/python3, whose libnbd is Debian's. Every choice is by a seed. The files are read
by docs/on-disk-format.md, not by the code that wrote them.
"""
import json
import os
import random
import struct
import sys

BLOCK = 4096
SEGMENT_BLOCKS = 256
DATA_BLOCKS = 240  # of each segment; the others are never written
MASK = (1 << 64) - 1
PAGE = 4096

# xxh3-64 with a seed, for inputs of one block; https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
WORDS = struct.Struct("<8Q")


def avalanche(x):
    x ^= x >> 37
    x = (x * 0x165667919E3779F9) & MASK
    return x ^ (x >> 32)


def xxh3_64(data, seed):
    """Of more than 240 bytes, in whole stripes of 64."""
    secret = b"".join(
        struct.pack("<2Q", (low + seed) & MASK, (high - seed) & MASK)
        for low, high in struct.iter_unpack("<2Q", SECRET))
    lanes = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]
    per_block = (len(secret) - 64) // 8
    stripes = (len(data) - 1) // 64

    def accumulate(at, secret_at):
        words, keys = WORDS.unpack_from(data, at), WORDS.unpack_from(secret, secret_at)
        for i in range(8):
            key = words[i] ^ keys[i]
            lanes[i ^ 1] += words[i]
            lanes[i] = (lanes[i] + (key & 0xFFFFFFFF) * (key >> 32)) & MASK
            lanes[i ^ 1] &= MASK

    for stripe in range(stripes):
        accumulate(stripe * 64, stripe % per_block * 8)
        if stripe % per_block == per_block - 1:
            for i, key in enumerate(WORDS.unpack_from(secret, len(secret) - 64)):
                lanes[i] = ((lanes[i] ^ (lanes[i] >> 47) ^ key) * P32_1) & MASK
    accumulate(len(data) - 64, len(secret) - 64 - 7)
    total = (len(data) * P64_1) & MASK
    keys = WORDS.unpack_from(secret, 11)
    for i in range(0, 8, 2):
        product = (lanes[i] ^ keys[i]) * (lanes[i + 1] ^ keys[i + 1])
        total += (product & MASK) ^ (product >> 64)
    return avalanche(total & MASK)


def block_sum(segment, block, data):
    rotated = ((segment << 32) | (segment >> 32)) & MASK
    return xxh3_64(data, rotated ^ block) or 1


def scrambled(salt, segment, place):
    x = ((segment ^ salt) * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return (x ^ (x >> 31)) or 1


def entry_mask(segment, block):
    return scrambled(0x7461626C65000001, segment, block)


def segments(directory):
    return sorted(int(n[:-5], 16) for n in os.listdir(directory) if n.endswith(".data"))


def path(directory, segment, kind):
    return os.path.join(directory, f"{segment:016x}.{kind}")


def entry(table, segment, block):
    (word,) = struct.unpack_from("<Q", table, PAGE + 8 * block)
    return word ^ entry_mask(segment, block)


def read(name):
    with open(name, "rb") as file:
        # What the daemon wrote by O_DIRECT, not what was cached before.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def overwrite(name, at, data):
    with open(name, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(data)
        os.fsync(file.fileno())


def content(seed, number):
    return random.Random(int(seed) * 1_000_003 + number).randbytes(BLOCK)


def connect(socket):
    import nbd
    handle = nbd.NBD()
    handle.set_export_name("vol0")
    handle.connect_unix(socket)
    return handle


def fill(socket, seed):
    handle = connect(socket)
    blocks = handle.get_size() // BLOCK
    for first in range(0, blocks, 8):
        if first % SEGMENT_BLOCKS < DATA_BLOCKS:
            data = b"".join(content(seed, block) for block in range(first, first + 8))
            handle.pwrite(data, first * BLOCK)
    handle.flush()


def check(socket, seed):
    """Every byte of the volume is what was written."""
    handle = connect(socket)
    blocks = handle.get_size() // BLOCK
    for first in range(0, blocks, 16):
        found = bytes(handle.pread(16 * BLOCK, first * BLOCK))
        for block in range(first, first + 16):
            holds_data = block % SEGMENT_BLOCKS < DATA_BLOCKS
            wanted = content(seed, block) if holds_data else bytes(BLOCK)
            if found[(block - first) * BLOCK:][:BLOCK] != wanted:
                sys.exit(f"block {block} of the volume was served wrong")
    print(f"ok: all {blocks} blocks of the volume read as they were written")


def settled(*directories):
    """No region is in doubt: the next start takes every block as it is."""
    for directory in directories:
        for segment in segments(directory):
            meta = read(path(directory, segment, "meta"))
            (word,) = struct.unpack_from("<Q", meta, 2 * PAGE)
            if word != scrambled(0x696E74656E740001, segment, 0):
                sys.exit(f"segment {segment} has a region in doubt")


def plant(directory, seed, count, hits):
    """Flips bits: seven of ten in blocks with data, the others in table entries, of any block.

    Besides, some in what holds nothing: the data of blocks never written, and the end of the table
    page. Those are no rot, and nobody may count them.
    """
    choose = random.Random(int(seed))
    known = segments(directory)
    tables = {segment: read(path(directory, segment, "table")) for segment in known}
    done = flipped(hits)
    goal = len(done) + int(count)
    with open(hits, "a", encoding="ascii") as log:
        while len(done) < goal:
            segment, block = choose.choice(known), choose.randrange(SEGMENT_BLOCKS)
            if choose.random() < 0.7:
                if entry(tables[segment], segment, block) == 0:
                    continue
                kind, at = "data", block * BLOCK + choose.randrange(BLOCK)
            else:
                kind, at = "table", PAGE + 8 * block + choose.randrange(8)
            bit = choose.randrange(8)
            # The same bit twice would be none.
            if (segment, block, kind, at, bit) in done:
                continue
            done.add((segment, block, kind, at, bit))
            name = path(directory, segment, kind)
            overwrite(name, at, bytes([read(name)[at] ^ (1 << bit)]))
            log.write(json.dumps([segment, block, kind, at, bit]) + "\n")
    for segment in known:
        for kind, at in (("data", (SEGMENT_BLOCKS - 1) * BLOCK + 9),
                         ("table", PAGE + 8 * SEGMENT_BLOCKS + 9)):
            name = path(directory, segment, kind)
            overwrite(name, at, bytes([read(name)[at] ^ 4]))
    print(f"ok: {count} bits flipped under {len(known)} replicas")


def flipped(hits):
    if not os.path.exists(hits):
        return set()
    with open(hits, encoding="ascii") as log:
        return {tuple(json.loads(line)) for line in log}


def distinct(hits):
    """In how many blocks the bits were: several may be in one, or in its entry."""
    print(len({(segment, block) for segment, block, *_ in flipped(hits)}))


def forge(directory, segment, block):
    """Other bytes in a block, and the table entry that vouches for them."""
    segment, block = int(segment), int(block)
    data = b"\xa5" * BLOCK
    overwrite(path(directory, segment, "data"), block * BLOCK, data)
    word = block_sum(segment, block, data) ^ entry_mask(segment, block)
    overwrite(path(directory, segment, "table"), PAGE + 8 * block, struct.pack("<Q", word))


def disks(*directories):
    """Replicas are alike, block by block, and each block is what its table says."""
    checked = 0
    for segment in segments(directories[0]):
        tables = [read(path(d, segment, "table"))[PAGE:PAGE + 8 * SEGMENT_BLOCKS]
                  for d in directories]
        if any(table != tables[0] for table in tables):
            sys.exit(f"segment {segment}: the tables differ")
        copies = [read(path(d, segment, "data")) for d in directories]
        for block in range(SEGMENT_BLOCKS):
            sum_ = entry(bytes(PAGE) + tables[0], segment, block)
            if sum_ == 0:
                continue
            pieces = [copy[block * BLOCK:][:BLOCK] for copy in copies]
            if any(piece != pieces[0] for piece in pieces):
                sys.exit(f"segment {segment} block {block}: the replicas differ")
            if block_sum(segment, block, pieces[0]) != sum_:
                sys.exit(f"segment {segment} block {block}: the table says otherwise")
            checked += 1
    print(f"ok: {checked} blocks of {len(directories)} replicas are alike, and as their tables say")


if __name__ == "__main__":
    COMMANDS = {f.__name__: f for f in (fill, check, settled, plant, distinct, forge, disks)}
    COMMANDS[sys.argv[1]](*sys.argv[2:])
