#!/usr/bin/env python3
"""Small files, one program, one after the other: FOLDER COUNT BYTES. Prints the operations per second of each kind as JSON."""

import json
import os
import sys
import time

folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
content = os.urandom(size)
names = [os.path.join(folder, f"file-{index:06}") for index in range(count)]


def write(name):
    with open(name, "wb", buffering=0) as file:
        file.write(content)


def read(name):
    with open(name, "rb", buffering=0) as file:
        assert file.read(size + 1) == content, f"{name}: other bytes than were written"


def rate(operation):
    begun = time.monotonic()
    for name in names:
        operation(name)
    return count / (time.monotonic() - begun)


os.mkdir(folder)
print(json.dumps({"write": rate(write), "stat": rate(os.stat), "read": rate(read), "unlink": rate(os.unlink)}))
os.rmdir(folder)
