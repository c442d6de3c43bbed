#include "base/verbs/protection_domain.h"

#include <cerrno>
#include <utility>

#include "base/assert.h"

namespace extmem::verbs {

std::shared_ptr<ProtectionDomain> ProtectionDomain::create(ibv_context* device) {
  ibv_pd* raw = Library::get()->alloc_pd(device);
  return raw != nullptr ? std::make_shared<ProtectionDomain>(raw) : nullptr;
}

ProtectionDomain::~ProtectionDomain() { Library::get()->dealloc_pd(raw_); }

std::unique_ptr<Registration> Registration::create(std::shared_ptr<ProtectionDomain> domain, const Shape& shape) {
  ibv_mr* raw =
      Library::get()->reg_mr_iova(domain->raw(), shape.memory.data(), shape.memory.size(), shape.iova, shape.access);
  return raw != nullptr ? std::make_unique<Registration>(std::move(domain), raw) : nullptr;
}

void Registration::end() {
  ibv_mr* raw = std::exchange(raw_, nullptr);
  if (raw == nullptr) return;
  const int failure = Library::get()->dereg_mr(raw);
  // A registration that cannot be ended is memory that cannot be taken back: no bytes may be given out anew then. That
  // of a device that is gone has ended with it.
  EXTMEM_ASSERT(failure == 0 || failure == EIO);
}

}  // namespace extmem::verbs
