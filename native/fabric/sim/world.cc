#include "fabric/sim/world.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/assert.h"

namespace extmem::fabric::sim {

namespace {
/// Not 0, which means "never" in places; a day of its own, so that file times look like some.
constexpr uint64_t kMonotonicStartNs = 1'000'000'000'000;
constexpr uint64_t kWallStartNs = 1'700'000'000'000'000'000;
}  // namespace

World::World(uint64_t seed) : time_{.monotonic_ns = kMonotonicStartNs, .wall_ns = kWallStartNs}, random_(seed) {
  const SimulatedTime* before = simulated_time.exchange(&time_, std::memory_order_relaxed);
  EXTMEM_ASSERT(before == nullptr);
}

World::~World() { simulated_time.store(nullptr, std::memory_order_relaxed); }

void World::at(uint64_t due_ns, std::function<void()> event) {
  events_.push({.due_ns = std::max(due_ns, now_ns()), .order = next_order_++, .run = std::move(event)});
}

void World::move_to(uint64_t time_ns) {
  if (time_ns <= now_ns()) return;
  time_.wall_ns += time_ns - time_.monotonic_ns;
  time_.monotonic_ns = time_ns;
}

void World::run_next() {
  const uint64_t due = events_.top().due_ns;
  // It may ask for others, and so move the queue.
  auto run = std::move(const_cast<Event&>(events_.top()).run);
  events_.pop();
  move_to(due);
  run();
}

void World::note(const char* what, uint64_t first, uint64_t second, uint64_t third) {
  kept_[notes_++ % kKeptNotes] = {.time_ns = now_ns(), .what = what, .values = {first, second, third}};
  auto mix = [this](uint64_t value) { hash_ = (hash_ ^ value) * 1099511628211u; };
  for (const char* at = what; *at != 0; ++at) mix(static_cast<uint8_t>(*at));
  for (uint64_t value : {now_ns(), first, second, third}) mix(value);
}

std::vector<std::string> World::last_notes() const {
  std::vector<std::string> lines;
  for (uint64_t index = notes_ > kKeptNotes ? notes_ - kKeptNotes : 0; index < notes_; ++index) {
    const Note& note = kept_[index % kKeptNotes];
    char line[160];
    std::snprintf(line, sizeof line, "%10.6f s  %-24s %lu %lu %lu",
                  static_cast<double>(note.time_ns - kMonotonicStartNs) / 1e9, note.what,
                  static_cast<unsigned long>(note.values[0]), static_cast<unsigned long>(note.values[1]),
                  static_cast<unsigned long>(note.values[2]));
    lines.emplace_back(line);
  }
  return lines;
}

}  // namespace extmem::fabric::sim
