// ① What the session hands to TypeScript: control-path requests, and events.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace extmem::fuse {

struct ControlRequest {
  uint64_t id;  ///< to answer it by (Session::reply)
  uint64_t unique;
  uint32_t opcode;
  uint64_t node;
  uint32_t uid, gid, pid;
  std::vector<uint8_t> body;  ///< what follows fuse_in_header
};

class ControlSink {
 public:
  // Any reactor's thread.
  virtual void control_request(ControlRequest request) = 0;
  virtual void interrupted(uint64_t unique) = 0;
  virtual void forgotten(std::vector<std::pair<uint64_t, uint64_t>> nodes) = 0;  ///< (node, lookups)
  virtual void session_ended(int error) = 0;                                     ///< once

 protected:
  ~ControlSink() = default;
};

}  // namespace extmem::fuse
