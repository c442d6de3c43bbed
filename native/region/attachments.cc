#include "region/attachments.h"

#include <algorithm>
#include <utility>

namespace extmem::region {

namespace {

constexpr int kMaxEnds = 64;
// What a client is told of a loan (protocol.json).
constexpr unsigned kPagesShift = 32, kNoticeShift = 43, kWritableShift = 63;

}  // namespace

bool Attachment::set(std::shared_ptr<Region> region, const Grant& grant) {
  if ((region_ != region || (grant_.rights & ~grant.rights) != 0) && !end_some()) return false;
  region_ = std::move(region);
  grant_ = grant;
  return true;
}

Status Attachment::check(uint32_t rights) const {
  if (grant_.not_after_ms != 0 && grant_.ended(wall_ms())) return Status::forbidden;
  if (allows(rights)) return Status::ok;
  return grant_.version > 0 ? Status::forbidden : Status::denied;
}

void Attachment::revoke() {
  grant_.rights = 0;
  while (!end_some()) continue;
}

bool Attachment::end_some() {
  for (int ends = 0; ends < kMaxEnds && !lent_.empty(); ++ends) {
    const auto first = lent_.begin();
    first->second.now->end();
    if (first->second.before) first->second.before->end();
    lent_.erase(first);
  }
  return lent_.empty();
}

std::optional<Outcome> Attachment::lend(uint64_t offset, Lender* lender, std::weak_ptr<Borrower> borrower) {
  if (lender == nullptr) return Outcome{.status = Status::bad_request};
  const bool writable = allows(static_cast<uint32_t>(protocol::Right::write));
  const uint64_t number = offset / protocol::kLendBytes;
  auto loan = region_->lend(number, writable, *lender, std::move(borrower));
  if (!loan) return std::nullopt;
  if (loan->outcome.status != Status::ok) return loan->outcome;
  loan->outcome.value = loan->chunk->key() | loan->bytes / protocol::kPageBytes << kPagesShift |
                        uint64_t{loan->chunk->notice()} << kNoticeShift | uint64_t{writable} << kWritableShift;
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

bool Attachments::put(uint64_t id, std::shared_ptr<Region> region, const Grant& grant) {
  if (entries_.size() >= forget_at_) forget_destroyed();
  last_ = nullptr;
  return entries_[id].set(std::move(region), grant);
}

bool Attachments::remove(uint64_t id) {
  last_ = nullptr;
  auto found = entries_.find(id);
  if (found == entries_.end()) return true;
  if (!found->second.end_some()) return false;
  entries_.erase(found);
  return true;
}

bool Attachments::revise(const AccessChange& change, uint64_t client) {
  const auto found = entries_.find(change.region);
  if (found == entries_.end() || found->second.grant().version >= change.version) return true;
  const bool keeps = change.keeps(client);
  if (!keeps) found->second.revoke();
  found->second.revise(change.version);  // also without rights: what is refused by them is then `forbidden`
  return keeps;
}

void Attachments::end_overdue(uint64_t now_ms) {
  for (auto& [id, attachment] : entries_) {
    if (attachment.grant().ended(now_ms)) attachment.revoke();
  }
}

bool Attachments::end_some() {
  last_ = nullptr;
  while (!entries_.empty()) {
    if (!entries_.begin()->second.end_some()) return false;
    entries_.erase(entries_.begin());
  }
  return true;
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
