"""Works on more memory than there is: a mapping of a file, or of nobody's ('-'), filled in order, then read and stored to at random.
Every page is checked when it is read. Prints {"fill": MB/s, "rate": accesses per second}."""
import json, mmap, os, random, sys, time

PAGE = 4096
path, size, accesses = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(1)
# Compresses to about a third, as what programs have in memory does.
pieces = [chance.randbytes(PAGE // 4 - 8) for _ in range(61)]


def content(page, version):
    return (pieces[page % 61] + page.to_bytes(4, 'little') + version.to_bytes(4, 'little')) * 4


if path == '-':
    memory = mmap.mmap(-1, size)
else:
    with open(path, 'w+b') as file:
        file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
begun = time.monotonic()
for page in range(size // PAGE):
    memory[page * PAGE : (page + 1) * PAGE] = content(page, 0)
filled = time.monotonic() - begun
memory.madvise(mmap.MADV_RANDOM)
versions = {}
begun = time.monotonic()
for access in range(accesses):
    page = chance.randrange(size // PAGE)
    if access % 2 == 0:
        assert memory[page * PAGE : (page + 1) * PAGE] == content(page, versions.get(page, 0)), f'page {page} is not what was stored'
    else:
        versions[page] = access
        memory[page * PAGE : (page + 1) * PAGE] = content(page, access)
worked = time.monotonic() - begun
print(json.dumps({'fill': size / 1e6 / filled, 'rate': accesses / worked}))
