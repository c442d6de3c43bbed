// A protection domain, and registrations within it. A registration ends before its domain, and synchronously: when
// end() returns, the device reaches that memory by it no more. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "base/verbs/verbs_library.h"

namespace extmem::verbs {

class ProtectionDomain {
 public:
  /// Null when the device has no more of them.
  static std::shared_ptr<ProtectionDomain> create(ibv_context* device);
  explicit ProtectionDomain(ibv_pd* raw) : raw_(raw) {}
  ~ProtectionDomain();
  ProtectionDomain(const ProtectionDomain&) = delete;
  ibv_pd* raw() const { return raw_; }

 private:
  ibv_pd* const raw_;
};

class Registration {
 public:
  struct Shape {
    std::span<std::byte> memory;
    uint64_t iova;  ///< the address by which the other side names the first byte
    int access;     ///< IBV_ACCESS_*
  };
  /// Null: refused (the limit of locked memory, say).
  static std::unique_ptr<Registration> create(std::shared_ptr<ProtectionDomain> domain, const Shape& shape);
  Registration(std::shared_ptr<ProtectionDomain> domain, ibv_mr* raw) : domain_(std::move(domain)), raw_(raw) {}
  ~Registration() { end(); }
  Registration(const Registration&) = delete;

  uint32_t local_key() const { return raw_->lkey; }
  uint32_t remote_key() const { return raw_->rkey; }
  void end();

 private:
  const std::shared_ptr<ProtectionDomain> domain_;
  ibv_mr* raw_;
};

}  // namespace extmem::verbs
