// The regions that a client has shown the manager's capability for, and the chunks of them that were lent to it. Ending
// a loan takes the device a while, so that many end in steps, between which other connections have their turns.
//
// Owned by one connection and used under its lock.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

#include "region/access.h"
#include "region/region.h"
#include "region/wire.h"

namespace extmem::region {

class Attachment {
 public:
  ~Attachment() {
    while (!end_some()) continue;
  }
  /// Of the same region with no less a right, what was lent stays: operations on it are under way. False: loans are
  /// left to be ended first, ask again.
  bool set(std::shared_ptr<Region> region, const Grant& grant);
  const std::shared_ptr<Region>& region() const { return region_; }
  const Grant& grant() const { return grant_; }
  bool allows(uint32_t rights) const { return (grant_.rights & rights) == rights; }
  /// ok, or why an operation that takes these rights is refused.
  Status check(uint32_t rights) const;
  /// What it allowed is void: when it returns, the client reaches nothing by it.
  void revoke();
  void revise(uint32_t version) { grant_.version = version; }

  /// Ends some loans; answers whether none is left.
  bool end_some();
  /// The chunk that `offset` lies in; the outcome's value is what the client is told of it. nullopt: busy.
  std::optional<Outcome> lend(uint64_t offset, Lender* lender, std::weak_ptr<Borrower> borrower);

 private:
  struct Lent {
    std::shared_ptr<LentChunk> now;
    std::shared_ptr<LentChunk> before;  // or null
  };

  std::shared_ptr<Region> region_;
  Grant grant_;
  std::unordered_map<uint64_t, Lent> lent_;  // by number
};

class Attachments {
 public:
  Attachment* find(uint64_t id);
  // False: loans are left to be ended first, ask again.
  bool put(uint64_t id, std::shared_ptr<Region> region, const Grant& grant);
  bool remove(uint64_t id);
  /// False: there was a grant, and it is void.
  bool revise(const AccessChange& change, uint64_t client);
  void end_overdue(uint64_t now_ms);
  /// Of all regions: ends some loans, and forgets what has none; answers whether nothing is left.
  bool end_some();

 private:
  void forget_destroyed();

  std::unordered_map<uint64_t, Attachment> entries_;
  size_t forget_at_ = 1024;
  uint64_t last_id_ = 0;
  Attachment* last_ = nullptr;  // of last_id_: one region is used many times in a row
};

}  // namespace extmem::region
