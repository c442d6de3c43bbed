// What a simulation runs on: time that jumps from event to event, one source of chance, and a log of what happened. One
// thread. Of the same seed everything follows, so that a run can be played again; the log's hash tells two runs apart.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"

namespace extmem::fabric::sim {

class World {
 public:
  /// From here on until it goes, the process's time is this world's.
  explicit World(uint64_t seed);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  uint64_t now_ns() const { return time_.monotonic_ns; }
  /// At that time, after what was asked for before it for the same time; not from within the caller.
  void at(uint64_t due_ns, std::function<void()> event);
  void after(uint64_t duration_ns, std::function<void()> event) { at(now_ns() + duration_ns, std::move(event)); }
  /// UINT64_MAX: nothing is going to happen.
  uint64_t next_due_ns() const { return events_.empty() ? UINT64_MAX : events_.top().due_ns; }
  /// Time passes until then; nothing is due before.
  void move_to(uint64_t time_ns);
  /// The first event, at its time.
  void run_next();

  uint64_t random() { return random_(); }
  /// [0, limit); 0 for 0.
  uint64_t below(uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }
  uint64_t between(uint64_t least, uint64_t most) { return least + below(most - least + 1); }
  bool chance(double probability) { return static_cast<double>(random_() >> 11) * 0x1p-53 < probability; }

  /// What happened, for the log. `what` is a literal.
  void note(const char* what, uint64_t first = 0, uint64_t second = 0, uint64_t third = 0);
  uint64_t hash() const { return hash_; }
  uint64_t notes() const { return notes_; }
  std::vector<std::string> last_notes() const;

 private:
  struct Event {
    uint64_t due_ns;
    uint64_t order;
    std::function<void()> run;
    bool operator<(const Event& other) const {
      return due_ns != other.due_ns ? due_ns > other.due_ns : order > other.order;
    }
  };
  struct Note {
    uint64_t time_ns;
    const char* what;
    std::array<uint64_t, 3> values;
  };
  static constexpr size_t kKeptNotes = 400;

  SimulatedTime time_;
  std::mt19937_64 random_;
  std::priority_queue<Event> events_;
  uint64_t next_order_ = 0;
  uint64_t hash_ = 14695981039346656037u;  // FNV-1a
  uint64_t notes_ = 0;
  std::array<Note, kKeptNotes> kept_{};
};

}  // namespace extmem::fabric::sim
