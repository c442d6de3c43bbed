#include "extent/domains.h"

#include <algorithm>
#include <mutex>
#include <string>

namespace extmem::extent {

namespace {

/// Empty: it is not known, so that nothing can be said to be apart from it. Where nobody asked for racks, a host is
/// one.
std::string domain_of(fabric::Appliance& appliance, Across level, bool asked) {
  std::lock_guard guard(appliance.lock);
  if (level == Across::appliance) return appliance.id;
  if (level == Across::host) return appliance.host_id;
  if (!appliance.rack.empty() || asked) return appliance.rack;
  return "host " + appliance.host_id;
}

std::vector<Column> form_at(const std::vector<fabric::Appliance*>& appliances, size_t copies, Across level,
                            bool asked) {
  struct Group {
    std::string domain;
    Column members;
  };
  std::vector<Group> groups;
  size_t usable = 0;
  for (fabric::Appliance* appliance : appliances) {
    std::string domain = domain_of(*appliance, level, asked);
    if (domain.empty()) continue;
    auto same = std::ranges::find(groups, domain, &Group::domain);
    if (same == groups.end()) same = groups.insert(groups.end(), Group{std::move(domain), {}});
    same->members.push_back(appliance);
    ++usable;
  }
  std::ranges::stable_sort(groups, std::greater{}, [](const Group& group) { return group.members.size(); });
  for (size_t count = std::min(usable, size_t{protocol::kMaxLayoutMembers}) / copies; count > 0; --count) {
    // A group gives no column two members: dealt out in turn, its neighbours land in different ones.
    Column dealt;
    for (const Group& group : groups) {
      const auto taken = static_cast<ptrdiff_t>(std::min(group.members.size(), count));
      dealt.insert(dealt.end(), group.members.begin(), group.members.begin() + taken);
    }
    if (dealt.size() < count * copies) continue;
    std::vector<Column> columns(count);
    for (size_t index = 0; index < count * copies; ++index) columns[index % count].push_back(dealt[index]);
    return columns;
  }
  return {};
}

}  // namespace

std::vector<Column> form_columns(const std::vector<fabric::Appliance*>& appliances, size_t copies, Across across) {
  if (copies == 1) {
    std::vector<Column> single;
    for (fabric::Appliance* appliance : appliances) single.push_back({appliance});
    if (single.size() > protocol::kMaxLayoutMembers) single.resize(protocol::kMaxLayoutMembers);
    return single;
  }
  if (across != Across::widest) return form_at(appliances, copies, across, true);
  for (Across level : {Across::rack, Across::host, Across::appliance}) {
    auto columns = form_at(appliances, copies, level, false);
    if (!columns.empty()) return columns;
  }
  return {};
}

}  // namespace extmem::extent
