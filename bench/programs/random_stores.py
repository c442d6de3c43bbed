#!/usr/bin/env python3
"""Random 4 KiB stores through a shared mapping, then msync(MS_SYNC), which counts: FILE COUNT. Prints stores per second as JSON."""

import json
import mmap
import os
import random
import sys
import time

PAGE = 4096
path, count = sys.argv[1], int(sys.argv[2])
descriptor = os.open(path, os.O_RDWR)
mapping = mmap.mmap(descriptor, 0)
mapping.madvise(mmap.MADV_RANDOM)
content = os.urandom(PAGE)
pages = random.sample(range(len(mapping) // PAGE), count)
begun = time.monotonic()
for page in pages:
    mapping[page * PAGE : (page + 1) * PAGE] = content
mapping.flush()
print(json.dumps({"rate": count / (time.monotonic() - begun)}))
