#!/usr/bin/env python3
"""Access patterns of real programs: prepare|run PATTERN PATH. What is read is checked. Prints JSON: `run` {"seconds": S}.

sqlite-scan    a whole table, by rowid          sqlite-index  an index is built over it
column-chunks  one column of a columnar file, by mmap: 256 KiB of each row group of 4 MiB
column-fields  one field of fixed records of 64 KiB, by mmap, which the kernel was told is random
backwards      64 KiB at a time from the end
noise          4 KiB in order, one in ten anywhere       random        4 KiB anywhere
"""

import json
import mmap
import os
import random
import sqlite3
import sys
import time

PAGE = 4096
BYTES = 128 << 20
ROWS = 100_000
chance = random.Random(1)


def prepare_database(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA page_size = 4096")
        database.execute("CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, key INTEGER, content BLOB)")
        rows = ((index, chance.randrange(1 << 40), chance.randbytes(1200)) for index in range(ROWS))
        database.executemany("INSERT OR IGNORE INTO item VALUES (?, ?, ?)", rows)
    database.close()


def prepare_pages(path):
    """Each page tells its number."""
    with open(path, "wb") as file:
        filler = chance.randbytes(PAGE - 8)
        for page in range(BYTES // PAGE):
            file.write(page.to_bytes(8, "little") + filler)


def scan(path):
    with sqlite3.connect(path) as database:
        count, octets = database.execute("SELECT count(*), sum(length(content)) FROM item").fetchone()
        assert (count, octets) == (ROWS, ROWS * 1200)
        assert database.execute("SELECT sum(unicode(hex(content))) FROM item").fetchone()[0] > 0
    database.close()


def build_index(path):
    database = sqlite3.connect(path)
    database.execute("CREATE INDEX item_key ON item (key)")
    database.rollback()
    database.execute("DROP INDEX IF EXISTS item_key")
    database.close()


def mapped(path, stretch, stride, advice=None):
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if advice is not None:
        memory.madvise(advice)
    for start in range(stride // 2, BYTES, stride):
        for at in range(start, start + stretch, PAGE):
            assert int.from_bytes(memory[at : at + 8], "little") == at // PAGE


def read(path, pages, length=PAGE):
    descriptor = os.open(path, os.O_RDONLY)
    # What is asked for comes to us as it is asked for.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for page in pages:
        assert int.from_bytes(os.pread(descriptor, length, page * PAGE)[:8], "little") == page
    os.close(descriptor)


def noisy(pages):
    for page in range(pages):
        if chance.random() < 0.1:
            yield chance.randrange(pages)
        yield page


PAGES = BYTES // PAGE
PATTERNS = {
    "sqlite-scan": scan,
    "sqlite-index": build_index,
    "column-chunks": lambda path: mapped(path, 256 << 10, 4 << 20),
    "column-fields": lambda path: mapped(path, PAGE, 64 << 10, mmap.MADV_RANDOM),
    "backwards": lambda path: read(path, range(PAGES - 16, -1, -16), 16 * PAGE),
    "noise": lambda path: read(path, noisy(PAGES)),
    "random": lambda path: read(path, (chance.randrange(PAGES) for _ in range(10_000))),
}

what, pattern, path = sys.argv[1:4]
if what == "prepare":
    if not os.path.exists(path):
        (prepare_database if pattern.startswith("sqlite") else prepare_pages)(path)
    print("{}")
else:
    begun = time.monotonic()
    PATTERNS[pattern](path)
    print(json.dumps({"seconds": time.monotonic() - begun}))
