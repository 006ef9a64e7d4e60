"""databases.py: a program with a database, which keeps a ledger outside of what was committed.

  databases.py sqlite write DATABASE LEDGER wal|delete    until SIGTERM, or an error
  databases.py sqlite check DATABASE LEDGER
  databases.py postgres write SOCKET_DIR LEDGER
  databases.py postgres check SOCKET_DIR LEDGER
  databases.py stalls LEDGER...                           how long commits took

A transaction puts one row into each of two tables and changes a counter; a line of the ledger is its
number and how many microseconds its commit took, written once the database said that it is committed.
Every committed row must be there with its bytes, no transaction in one table alone, and the counter at
their number."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time

SCHEMA = """
CREATE TABLE IF NOT EXISTS a (id BIGINT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS b (id BIGINT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counter (n BIGINT NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT * FROM counter);
"""


def body(number):
    return hashlib.sha256(b"%d" % number).hexdigest() * (1 + number % 40)


class Sqlite:
    def __init__(self, path, mode="wal"):
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute(f"PRAGMA journal_mode={mode}")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.executescript(SCHEMA)

    def commit(self, number):
        run = self.connection.execute
        run("BEGIN IMMEDIATE")
        for table in "ab":
            run(f"INSERT INTO {table} VALUES (?, ?)", (number, body(number)))
        run("UPDATE counter SET n = n + 1")
        run("COMMIT")

    def rows(self, query):
        return self.connection.execute(query).fetchall()

    def is_sound(self):
        return self.rows("PRAGMA integrity_check") == [("ok",)]


class Postgres:
    """Through one psql, which echoes a line once everything before it is done."""

    def __init__(self, directory):
        command = ["psql", "-qAtX", "-h", directory, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "postgres"]
        self.psql = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.rows("SET client_min_messages = warning;" + SCHEMA)

    def rows(self, queries):
        self.psql.stdin.write(queries + "\n;\n\\echo === done\n")
        self.psql.stdin.flush()
        rows = []
        while True:
            line = self.psql.stdout.readline()
            if not line:
                raise RuntimeError("psql ended")
            if line == "=== done\n":
                return rows
            rows.append(tuple(line.rstrip("\n").split("|")))

    def commit(self, number):
        text = body(number)
        inserts = "".join(f"INSERT INTO {table} VALUES ({number}, '{text}');" for table in "ab")
        self.rows(f"BEGIN;{inserts}UPDATE counter SET n = n + 1;COMMIT;")

    def is_sound(self):
        return True  # pg_amcheck and pg_checksums are the script's


def write(database, ledger):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    number = max((int(row[0] or 0) for row in database.rows("SELECT max(id) FROM a")), default=0)
    with open(ledger, "a", encoding="ascii", buffering=1) as lines:
        while not stop:
            number += 1
            began = time.monotonic()
            database.commit(number)
            lines.write(f"{number} {int((time.monotonic() - began) * 1e6)}\n")


def check(database, ledger):
    committed = {int(line.split()[0]) for line in open(ledger, encoding="ascii")}
    tables = {
        table: {int(number): text for number, text in database.rows(f"SELECT id, body FROM {table}")}
        for table in "ab"
    }
    lost = sorted(committed - tables["a"].keys())
    torn = tables["a"].keys() ^ tables["b"].keys()
    wrong = [n for table in tables.values() for n, text in table.items() if text != body(n)]
    counted = int(database.rows("SELECT n FROM counter")[0][0])
    sound = database.is_sound()
    print(f"{len(committed)} committed, {len(tables['a'])} there, {len(lost)} lost, {len(torn)} torn, "
          f"{len(wrong)} wrong, counter {counted}, {'sound' if sound else 'NOT SOUND'}")
    good = committed and not lost and not torn and not wrong and counted == len(tables["a"]) and sound
    return 0 if good else 1


def stalls(ledgers):
    took = sorted(int(line.split()[1]) for path in ledgers for line in open(path, encoding="ascii"))
    total, slow = sum(took), [us for us in took if us > 100_000]
    print(f"{len(took)} commits: half within {took[len(took) // 2] / 1000:.1f} ms, the longest "
          f"{took[-1] / 1e6:.2f} s; {len(slow)} took more than 100 ms, which was "
          f"{100 * sum(slow) / total:.0f} % of the time")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "stalls":
        sys.exit(stalls(sys.argv[2:]))
    kind, verb, place, ledger = sys.argv[1:5]
    database = Sqlite(place, *sys.argv[5:]) if kind == "sqlite" else Postgres(place)
    sys.exit(write(database, ledger) if verb == "write" else check(database, ledger))
