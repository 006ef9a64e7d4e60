"""alike.py SEGMENTS_DIR...: the replicas of every segment, on the disks of stopped servers, hold the same.

Compares the checksum tables entry by entry, and the data of every block that has any. Knows the
format from docs/on-disk-format.md, not from the code that writes it."""

import os
import struct
import sys

PAGE = 4096
MASK = (1 << 64) - 1


def scrambled(salt, segment, place):
    x = ((segment ^ salt) * 0x9E3779B97F4A7C15 + place * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    x ^= x >> 31
    return x or 1


def main(directories):
    segments = {}
    for directory in directories:
        for name in os.listdir(directory):
            if name.endswith(".meta"):
                segments.setdefault(name[:-5], []).append(directory)
    compared = written = 0
    different = []
    for name, places in sorted(segments.items()):
        segment = int(name, 16)
        tables = [open(f"{place}/{name}.table", "rb").read() for place in places]
        files = [open(f"{place}/{name}.data", "rb") for place in places]
        blocks = os.path.getsize(f"{places[0]}/{name}.data") // PAGE
        for block in range(blocks):
            entries = [struct.unpack_from("<Q", table, PAGE + 8 * block)[0] for table in tables]
            compared += 1
            if len(set(entries)) > 1:
                different.append(f"segment {name} block {block}: the tables differ")
            elif entries[0] != scrambled(0x7461626C65000001, segment, block):
                written += 1
                if len({os.pread(file.fileno(), PAGE, block * PAGE) for file in files}) > 1:
                    different.append(f"segment {name} block {block}: the data differ")
        for file in files:
            file.close()
    for line in different[:10]:
        print(line)
    copies = sum(map(len, segments.values()))
    print(f"{len(segments)} segments in {copies} replicas: {compared} blocks compared, {written} with data, {len(different)} differ")
    return 1 if different or not written else 0


sys.exit(main(sys.argv[1:]))
