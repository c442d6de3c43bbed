// Memory that moves: the appliance that it moves to reads it from the appliances that have it, and stores it in its own
// regions. So all that is ever written is written by the process whose memory it is, and once copy() has returned,
// nothing of it is under way.
//
// A copy reads as a client of the other appliances, over tcp: none of their memory is handed out for it. Pages of zeros
// are not stored: what is copied to was zero before, and a hole stays one.
//
// copy() blocks its thread, which is the reactor's meanwhile; stop() is for any other one.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/reactor.h"
#include "base/task.h"
#include "fabric/transport.h"
#include "region/region_server.h"

namespace extmem::move {

/// Who has memory that is copied.
struct Origin {
  std::string id;
  std::vector<fabric::Endpoint> endpoints;  ///< not empty
  uint64_t incarnation;
};

/// A piece of a region elsewhere; how long it is, the piece that it is copied to says.
struct Source {
  std::string origin;  ///< Origin::id
  uint64_t region, region_bytes, offset;
  protocol::Capability capability;
};

struct CopyPiece {
  uint64_t region, offset, bytes;  ///< whole pages of a region of ours
  std::vector<Source> sources;     ///< all with the same bytes: the next where one cannot be read
};

struct CopyOutcome {
  enum class Code : uint8_t { ok, stopped, late, unreadable, unwritable };
  Code code = Code::ok;
  std::string why;
};

class Copier {
 public:
  struct Options {
    fabric::Credentials credentials;
    uint64_t limit_ms;  ///< for all of it
  };
  Copier(region::RegionServer& server, const Options& options, const std::vector<Origin>& origins);
  ~Copier();
  Copier(const Copier&) = delete;

  /// Once.
  CopyOutcome copy(const std::vector<CopyPiece>& pieces);
  /// copy() returns soon, or at once when it is called later.
  void stop();

 private:
  struct Chunk {
    const CopyPiece* piece;
    uint64_t at, bytes;
  };
  struct Buffer;
  /// Ends what is under way, on the reactor's thread.
  struct Stop final : Message {
    explicit Stop(Copier& copier) : copier(copier) {}
    void run() override { copier.fail(CopyOutcome::Code::stopped, "it was stopped"); }
    Copier& copier;
  };
  Detached work();
  Task<bool> read(const Chunk& chunk, Buffer& buffer);
  Task<bool> store(const Chunk& chunk, Buffer& buffer);
  Task<bool> store_run(const Chunk& chunk, std::span<const uint8_t> data, uint64_t at);
  bool is_late();
  void fail(CopyOutcome::Code code, std::string why);

  region::RegionServer& server_;
  const uint64_t limit_ms_;
  fabric::Directory directory_;
  Reactor reactor_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::vector<Chunk> chunks_;
  size_t next_ = 0;
  unsigned workers_ = 0;
  uint64_t deadline_ns_ = 0;
  CopyOutcome outcome_;
  Stop stop_message_{*this};
  std::atomic<bool> stopping_{false};
};

}  // namespace extmem::move
