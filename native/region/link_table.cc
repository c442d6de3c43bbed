#include "region/link_table.h"

#include <algorithm>
#include <optional>

namespace extmem::region {

using protocol::Status;

Status LinkTable::enter(const Link& link, uint32_t link_generation, std::weak_ptr<Killable> connection) {
  std::shared_ptr<Killable> older;
  {
    std::lock_guard guard(lock_);
    if (fenced_locked(link.client)) return Status::fenced;
    auto [entry, fresh] = links_.try_emplace(link);
    if (!fresh && link_generation <= entry->second.link_generation) return Status::fenced;
    older = entry->second.connection.lock();
    entry->second = {.link_generation = link_generation, .connection = std::move(connection)};
  }
  if (older) older->kill(Status::fenced);
  return Status::ok;
}

size_t LinkTable::fence(const ClientRange& clients) {
  std::vector<std::shared_ptr<Killable>> dead;
  size_t met = 0;
  {
    std::lock_guard guard(lock_);
    refuse_locked(clients);
    auto entry = links_.lower_bound(Link{.client = clients.first, .client_generation = 0, .link = 0});
    std::optional<uint64_t> before;
    while (entry != links_.end() && entry->first.client <= clients.last) {
      if (before != entry->first.client) ++met;
      before = entry->first.client;
      if (auto connection = entry->second.connection.lock()) dead.push_back(std::move(connection));
      entry = links_.erase(entry);
    }
  }
  for (auto& connection : dead) connection->kill(Status::fenced);
  return met;
}

/// Together with what it overlaps or touches it is one range.
void LinkTable::refuse_locked(ClientRange clients) {
  auto entry = fenced_.upper_bound(clients.first);
  if (entry != fenced_.begin() && std::prev(entry)->second + 1 >= clients.first) --entry;
  while (entry != fenced_.end() && entry->first <= clients.last + 1) {
    clients.first = std::min(clients.first, entry->first);
    clients.last = std::max(clients.last, entry->second);
    entry = fenced_.erase(entry);
  }
  fenced_.emplace(clients.first, clients.last);
}

bool LinkTable::fenced_locked(uint64_t client) const {
  auto after = fenced_.upper_bound(client);
  return after != fenced_.begin() && client <= std::prev(after)->second;
}

bool LinkTable::fenced(uint64_t client) const {
  std::lock_guard guard(lock_);
  return fenced_locked(client);
}

std::vector<std::shared_ptr<Killable>> LinkTable::connections() const {
  std::lock_guard guard(lock_);
  std::vector<std::shared_ptr<Killable>> found;
  for (const auto& [link, entry] : links_) {
    if (auto connection = entry.connection.lock()) found.push_back(std::move(connection));
  }
  return found;
}

size_t LinkTable::fenced_ranges() const {
  std::lock_guard guard(lock_);
  return fenced_.size();
}

}  // namespace extmem::region
