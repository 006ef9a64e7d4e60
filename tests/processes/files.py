"""files.py: a program that fsyncs, and remembers outside what it was told.

  files.py write DIR HISTORY SEED   appends to files, makes and renames some, until SIGTERM or an error
  files.py check DIR HISTORY        everything that was fsynced is there

A line of the history is `FILE OFFSET BYTES SEED` once the bytes were fsynced, or `FILE there` once
a renamed file's directory was. SIGTERM ends it with 0, an error of the file system with 1."""

import os
import random
import signal
import sys


def write(directory, path, seed):
    source = random.Random(seed)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    with open(path, "a", encoding="ascii", buffering=1) as history:
        number = 0
        while not stop:
            number += 1
            name = f"log-{seed}-{source.randrange(8)}"
            bytes_seed = source.randrange(1 << 30)
            data = random.Random(bytes_seed).randbytes(source.choice([10, 500, 4096, 20000]))
            with open(f"{directory}/{name}", "ab") as file:
                at = file.tell()
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            history.write(f"{name} {at} {len(data)} {bytes_seed}\n")
            if number % 10 == 0:
                new = f"{directory}/made-{seed}-{number}"
                with open(new + ".tmp", "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(new + ".tmp", new)
                parent = os.open(directory, os.O_RDONLY)
                os.fsync(parent)
                os.close(parent)
                history.write(f"made-{seed}-{number} 0 {len(data)} {bytes_seed}\n")
            if number % 400 == 0:
                # Said before it is done: what is in these files is not looked for any more.
                history.write(f"truncating log-{seed}-\n")
                for name in os.listdir(directory):
                    if name.startswith(f"log-{seed}-"):
                        os.truncate(f"{directory}/{name}", 0)
    return 0


def check(directory, path):
    there = []
    with open(path, encoding="ascii") as history:
        for line in history:
            if line.startswith("truncating "):
                there = [entry for entry in there if not entry[0].startswith(line.split()[1])]
            else:
                name, at, count, seed = line.split()
                there.append((name, int(at), int(count), int(seed)))
    wrong = 0
    for name, at, count, seed in there:
        try:
            with open(f"{directory}/{name}", "rb") as file:
                file.seek(at)
                found = file.read(count)
        except OSError as error:
            found = str(error).encode()
        if found != random.Random(seed).randbytes(count):
            wrong += 1
            print(f"{name} at {at}: {count} fsynced bytes are not there ({len(found)} are)")
    print(f"{len(there)} fsynced writes looked at, {wrong} wrong")
    return 1 if wrong or not there else 0


if __name__ == "__main__":
    verb, directory, path = sys.argv[1:4]
    sys.exit(write(directory, path, int(sys.argv[4])) if verb == "write" else check(directory, path))
