/** What applications do while memory is short; each checks every byte that it reads, and prints its longest single access in ms. */

/** Two that write at random places of a file each, buffered, so many bytes together, and check what they wrote. */
export function verifiedWriters(folder: string, bytes: number): string[] {
  return [
    'fio',
    '--name=verify',
    `--directory=${folder}`,
    '--ioengine=psync',
    '--rw=randwrite',
    '--bs=16k',
    '--numjobs=2',
    `--size=${bytes / 2}`,
    '--verify=crc32c',
    '--verify_fatal=1',
    '--fallocate=none',
    '--verify_state_save=0',
  ];
}

/** Writes every page of a shared mapping in random order, then reads all of them; prints the longest single access in ms. */
export const SHARED_WRITER = `
import mmap, os, random, sys, time
path, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
PAGE = 4096
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, size)
mapping = mmap.mmap(fd, size)
pages = list(range(size // PAGE))
random.Random(seed).shuffle(pages)
longest = 0
def content(page, version): return (page * 2654435761 + version * seed & 0xffffffffffff).to_bytes(8, 'little') * (PAGE // 8)
def timed(access, *parameters):
    global longest
    begun = time.monotonic()
    result = access(*parameters)
    longest = max(longest, time.monotonic() - begun)
    return result
def store(page, version): mapping[page * PAGE : (page + 1) * PAGE] = content(page, version)
def load(page): return mapping[page * PAGE : (page + 1) * PAGE]
for page in pages: timed(store, page, 1)
for page in pages[: len(pages) // 2]:
    assert timed(load, page) == content(page, 1), f'page {page}: not what was written'
    timed(store, page, 2)
mapping.flush()
for index, page in enumerate(pages):
    assert timed(load, page) == content(page, 2 if index < len(pages) // 2 else 1), f'page {page}: not what was written'
print(round(longest * 1000))
`;
