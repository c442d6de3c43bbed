// Invariants that stay on in release builds: a broken one stops the process with the place and the words,
// because going on could write wrong bytes.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace extmem {

[[noreturn]] inline void fail_invariant(const char* file, int line, const char* words) {
  std::fprintf(stderr, "extmem: broken invariant at %s:%d: %s\n", file, line, words);
  std::abort();
}

}  // namespace extmem

#define EXTMEM_ASSERT(condition)                                                \
  do {                                                                          \
    if (!(condition)) ::extmem::fail_invariant(__FILE__, __LINE__, #condition); \
  } while (0)
