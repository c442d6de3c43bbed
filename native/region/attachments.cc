#include "region/attachments.h"

#include <algorithm>
#include <utility>

namespace extmem::region {

void Attachment::set(std::shared_ptr<Region> region, uint32_t rights) {
  if (region_ != region || (rights_ & ~rights) != 0) end_lending();
  region_ = std::move(region);
  rights_ = rights;
}

void Attachment::end_lending() {
  for (auto& [number, lent] : lent_) {
    lent.now->end();
    if (lent.before) lent.before->end();
  }
  lent_.clear();
}

std::optional<Outcome> Attachment::lend(uint64_t offset, Lender* lender, std::weak_ptr<Borrower> borrower) {
  if (lender == nullptr) return Outcome{.status = Status::bad_request};
  const bool writable = allows(static_cast<uint32_t>(protocol::Right::write));
  const uint64_t number = offset / protocol::kLendBytes;
  auto loan = region_->lend(number, writable, *lender, std::move(borrower));
  if (!loan) return std::nullopt;
  if (loan->outcome.status != Status::ok) return loan->outcome;
  loan->outcome.value = loan->chunk->key() | loan->bytes / protocol::kPageBytes << 32 | uint64_t{writable} << 63;
  // The one before, of when it was shorter or not to be written: operations with its key may be under way.
  Lent& lent = lent_[number];
  if (lent.before) lent.before->end();
  lent.before = std::exchange(lent.now, std::move(loan->chunk));
  return loan->outcome;
}

Attachment* Attachments::find(uint64_t id) {
  if (last_ != nullptr && last_id_ == id) return last_;
  auto found = entries_.find(id);
  if (found == entries_.end()) return nullptr;
  last_id_ = id;
  last_ = &found->second;
  return last_;
}

void Attachments::put(uint64_t id, std::shared_ptr<Region> region, uint32_t rights) {
  if (entries_.size() >= forget_at_) forget_destroyed();
  last_ = nullptr;
  entries_[id].set(std::move(region), rights);
}

void Attachments::remove(uint64_t id) {
  last_ = nullptr;
  entries_.erase(id);
}

/// Attachments of destroyed regions are dropped now and then, so that the table stays as large as what exists.
void Attachments::forget_destroyed() {
  std::erase_if(entries_, [](auto& entry) {
    auto outcome = entry.second.region()->check_read(0, 0);
    return outcome && outcome->status == Status::not_present;
  });
  forget_at_ = std::max<size_t>(1024, entries_.size() * 2);
}

}  // namespace extmem::region
