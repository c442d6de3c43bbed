"""Queries of a table kept by columns, through a mapping: column_scans.py FILE COLUMNS QUERIES. Each query reads two or three columns from
their beginning, the first ones likelier than the last, some all of them, some a part."""

import mmap
import os
import random
import sys

path, columns, queries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random.seed(1)
descriptor = os.open(path, os.O_RDONLY)
size = os.fstat(descriptor).st_size
table = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
column_bytes = size // columns
total = 0
for _ in range(queries):
    part = 1 if random.random() < 0.3 else random.choice((0.1, 0.25, 0.5))
    for _ in range(random.choice((2, 3))):
        column = int(columns * random.random() ** 2.5)
        begin = column * column_bytes
        for at in range(begin, begin + int(column_bytes * part), mmap.PAGESIZE):
            total += table[at]
print(total)
