#include "region/link_table.h"

#include <algorithm>

namespace extmem::region {

using protocol::Status;

Status LinkTable::enter(const Link& link, uint32_t link_generation, std::weak_ptr<Killable> connection) {
  std::shared_ptr<Killable> older;
  {
    std::lock_guard guard(lock_);
    auto dead = fenced_.find(link.client);
    if (dead != fenced_.end() && link.client_generation <= dead->second) return Status::fenced;
    auto [entry, fresh] = links_.try_emplace(link);
    if (!fresh && link_generation <= entry->second.link_generation) return Status::fenced;
    older = entry->second.connection.lock();
    entry->second = {.link_generation = link_generation, .connection = std::move(connection)};
  }
  if (older) older->kill(Status::fenced);
  return Status::ok;
}

size_t LinkTable::fence(uint64_t client, uint32_t generation) {
  std::vector<std::shared_ptr<Killable>> dead;
  {
    std::lock_guard guard(lock_);
    uint32_t& highest = fenced_.try_emplace(client, generation).first->second;
    highest = std::max(highest, generation);
    auto entry = links_.lower_bound(Link{.client = client, .client_generation = 0, .link = 0});
    while (entry != links_.end() && entry->first.client == client && entry->first.client_generation <= generation) {
      if (auto connection = entry->second.connection.lock()) dead.push_back(std::move(connection));
      entry = links_.erase(entry);
    }
  }
  for (auto& connection : dead) connection->kill(Status::fenced);
  return dead.size();
}

bool LinkTable::fenced(uint64_t client, uint32_t generation) const {
  std::lock_guard guard(lock_);
  auto dead = fenced_.find(client);
  return dead != fenced_.end() && generation <= dead->second;
}

}  // namespace extmem::region
