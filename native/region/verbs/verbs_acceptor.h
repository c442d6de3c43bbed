// Where verbs connections come from: rdma_cm's listener on the same address and port as tcp's (its port space is
// another one).
#pragma once

#include "base/verbs/verbs_library.h"
#include "region/wire.h"

namespace extmem::region {

class VerbsAcceptor final : public Acceptor {
 public:
  /// Null where there is no RDMA device that has the address.
  static std::unique_ptr<VerbsAcceptor> create(const SocketAddress& address);
  ~VerbsAcceptor() override;

  int fd() const override { return events_->fd; }
  std::unique_ptr<Wire> accept() override;

 private:
  explicit VerbsAcceptor(const verbs::Library& library) : library_(library) {}

  const verbs::Library& library_;
  rdma_event_channel* events_ = nullptr;
  rdma_cm_id* id_ = nullptr;
};

}  // namespace extmem::region
