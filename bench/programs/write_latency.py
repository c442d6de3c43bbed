#!/usr/bin/env python3
"""PATH BYTES COUNT: writes 4 KiB anywhere in a file of so many bytes, and synchronises, again and again. Prints JSON, µs each."""

import json
import os
import random
import sys
import time

PAGE = 4096
path, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(1)
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
for offset in range(0, size, 1 << 20):
    os.pwrite(file, chance.randbytes(1 << 20), offset)
os.fsync(file)
page = chance.randbytes(PAGE)
took = []
for _ in range(count):
    offset = chance.randrange(size // PAGE) * PAGE
    begun = time.perf_counter_ns()
    os.pwrite(file, page, offset)
    os.fsync(file)
    took.append((time.perf_counter_ns() - begun) / 1000)
os.close(file)
took.sort()
print(json.dumps({"mean": sum(took) / count, "p50": took[count // 2], "p90": took[count * 9 // 10], "p99": took[count * 99 // 100]}))
