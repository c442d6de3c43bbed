// ① FUSE_INIT: the kernel's first request, answered before there is anybody to serve another.
#pragma once

#include <string>

namespace extmem::fuse {

struct Handshake {
  std::string error;           ///< empty: the session has begun
  bool uring = false;          ///< FUSE over io_uring was agreed on: nothing is answered until every queue has an entry
  bool maps_direct = false;    ///< files opened with FOPEN_DIRECT_IO can be mapped shared (Linux 6.6)
  bool drops_written = false;  ///< the kernel drops its pages of what is written to such files afterwards, too
};

/// offer_uring: we have the rings for it. It is taken when the kernel offers it, too.
Handshake shake_hands(int fd, bool offer_uring);

}  // namespace extmem::fuse
