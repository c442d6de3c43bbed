// Hit ratios of eviction policies on recorded references (reference_log.h): the one that the cache runs, and others
// beside it. Counted are pages that were read and need not be fetched, neither then nor ahead of it. A written page is
// in the cache, and cannot go until it is clean.
//
//   eviction_bench [NAME=LOG...]     prints JSON; the last references are made up here
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/eviction.h"
#include "cache/reference_log.h"

namespace extmem::cache {
namespace {

using Kind = Reference::Kind;
using Page = uint32_t;  // of all that a trace speaks of, from 1 on

// ---- traces

struct Trace {
  struct Request {
    Kind kind;
    uint64_t ns;
    uint32_t first, count;  // in pages
  };
  std::string name;
  std::vector<Request> requests;
  std::vector<Page> pages;
  std::vector<std::pair<uint32_t, uint32_t>> places{{0, 0}};  // file and page in it, of each Page
  std::vector<std::map<uint32_t, Page>> files{{}};            // the other way round
  uint64_t read_pages = 0;
  uint32_t footprint() const { return static_cast<uint32_t>(places.size() - 1); }
};

class TraceBuilder {
 public:
  explicit TraceBuilder(std::string name) { trace_.name = std::move(name); }
  void add(const Reference& reference) {
    auto kind = static_cast<Kind>(reference.kind);
    auto [place, is_new] = indexes_.try_emplace(reference.node, static_cast<uint32_t>(trace_.files.size()));
    if (is_new) trace_.files.emplace_back();
    auto first = static_cast<uint32_t>(trace_.pages.size());
    if (kind == Kind::drop) {
      add_known(place->second, reference);
    } else {
      add_all(place->second, reference);
      if (kind != Kind::write) trace_.read_pages += reference.count;
    }
    trace_.requests.push_back({kind, reference.ns, first, static_cast<uint32_t>(trace_.pages.size()) - first});
  }
  Trace take() { return std::move(trace_); }

 private:
  void add_known(uint32_t file, const Reference& reference) {
    auto& known = trace_.files[file];
    uint64_t end = reference.count == Reference::kToTheEnd ? UINT64_MAX : uint64_t{reference.page} + reference.count;
    for (auto at = known.lower_bound(reference.page); at != known.end() && at->first < end; ++at)
      trace_.pages.push_back(at->second);
  }
  void add_all(uint32_t file, const Reference& reference) {
    for (uint32_t page = reference.page; page < reference.page + reference.count; ++page) {
      auto [known, is_new] = trace_.files[file].try_emplace(page, static_cast<Page>(trace_.places.size()));
      if (is_new) trace_.places.emplace_back(file, page);
      trace_.pages.push_back(known->second);
    }
  }
  Trace trace_;
  std::unordered_map<uint64_t, uint32_t> indexes_;  // of nodes
};

// ---- policies

/// What the simulated cache asks of a policy: pages are clean and in it from insert() to remove() or evict().
class Policy {
 public:
  virtual ~Policy() = default;
  /// cold: the kernel keeps it, too.
  virtual void insert(Page page, bool cold) = 0;
  virtual void hit(Page page) = 0;
  /// It was read ahead, and is asked for the first time.
  virtual void use(Page page, bool cold) {
    remove(page);
    insert(page, cold);
  }
  virtual void remove(Page page) = 0;
  /// Takes one out; 0: there is none.
  virtual Page evict() = 0;
};

/// Whether what the kernel keeps, too, goes in at the cold end, or a policy treats all pages alike.
enum class Minds : uint8_t { nothing, kernel };

/// Queues of pages, each page in one of them at most.
class Queues {
 public:
  Queues(uint32_t footprint, uint32_t queues) : links_(footprint + 1), ends_(queues) {}
  void push_front(uint32_t queue, Page page) { link(queue, page, ends_[queue].first, true); }
  void push_back(uint32_t queue, Page page) { link(queue, page, ends_[queue].last, false); }
  void enter(uint32_t queue, Page page, bool at_back) { at_back ? push_back(queue, page) : push_front(queue, page); }
  Page back(uint32_t queue) const { return ends_[queue].last; }
  uint32_t count(uint32_t queue) const { return ends_[queue].count; }
  void remove(Page page) {
    auto& [previous, next, queue] = links_[page];
    (previous != 0 ? links_[previous].next : ends_[queue].first) = next;
    (next != 0 ? links_[next].previous : ends_[queue].last) = previous;
    --ends_[queue].count;
    previous = next = 0;
  }

 private:
  struct Link {
    Page previous = 0, next = 0;
    uint32_t queue = 0;
  };
  struct Ends {
    Page first = 0, last = 0;
    uint32_t count = 0;
  };
  void link(uint32_t queue, Page page, Page neighbour, bool front) {
    links_[page] = {front ? 0 : neighbour, front ? neighbour : 0, queue};
    if (neighbour != 0) (front ? links_[neighbour].previous : links_[neighbour].next) = page;
    auto& ends = ends_[queue];
    (front ? ends.first : ends.last) = page;
    if (ends.count++ == 0) ends.first = ends.last = page;
  }
  std::vector<Link> links_;
  std::vector<Ends> ends_;
};

class PlainLru final : public Policy {
 public:
  explicit PlainLru(const Trace& trace) : queues_(trace.footprint(), 1) {}
  void insert(Page page, bool) override { queues_.push_front(0, page); }
  void hit(Page page) override {
    queues_.remove(page);
    queues_.push_front(0, page);
  }
  void remove(Page page) override { queues_.remove(page); }
  Page evict() override {
    Page page = queues_.back(0);
    if (page != 0) queues_.remove(page);
    return page;
  }

 private:
  Queues queues_;
};

/// Pages that went not long ago: only their names.
class Ghosts {
 public:
  Ghosts(uint32_t footprint, uint32_t most) : queue_(footprint, 1), known_(footprint + 1), most_(most) {}
  void add(Page page) {
    queue_.push_front(0, page);
    known_[page] = true;
    if (queue_.count(0) > most_) take(queue_.back(0));
  }
  /// Whether it was one.
  bool take(Page page) {
    if (!known_[page]) return false;
    known_[page] = false;
    queue_.remove(page);
    return true;
  }

 private:
  Queues queue_;
  std::vector<bool> known_;
  uint32_t most_;
};

/// A fifth for pages not asked for again. With ghosts, pages that come back are protected at once.
class SegmentedLru final : public Policy {
 public:
  SegmentedLru(const Trace& trace, uint32_t capacity, Minds minds, bool ghosts)
      : queues_(trace.footprint(), 2),
        ghosts_(trace.footprint(), ghosts ? capacity : 0),
        most_(capacity - capacity / 5),
        minds_(minds) {}
  void insert(Page page, bool cold) override {
    if (ghosts_.take(page)) return protect(page);
    queues_.enter(kProbation, page, cold && minds_ == Minds::kernel);
  }
  void hit(Page page) override {
    queues_.remove(page);
    protect(page);
  }
  void remove(Page page) override { queues_.remove(page); }
  Page evict() override {
    Page page = queues_.back(kProbation);
    if (page == 0) page = queues_.back(kProtected);
    if (page != 0) {
      queues_.remove(page);
      ghosts_.add(page);
    }
    return page;
  }

 private:
  static constexpr uint32_t kProbation = 0, kProtected = 1;
  void protect(Page page) {
    queues_.push_front(kProtected, page);
    if (queues_.count(kProtected) <= most_) return;
    Page demoted = queues_.back(kProtected);
    queues_.remove(demoted);
    queues_.push_front(kProbation, demoted);
  }
  Queues queues_;
  Ghosts ghosts_;
  uint32_t most_;
  Minds minds_;
};

/// Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023): a tenth is the small queue, the ghost
/// queue has as many entries as the main queue pages.
class S3Fifo final : public Policy {
 public:
  S3Fifo(const Trace& trace, uint32_t capacity, Minds minds)
      : queues_(trace.footprint(), 2),
        uses_(trace.footprint() + 1),
        small_(std::max(capacity / 10, 1u)),
        ghosts_(trace.footprint(), capacity - small_),
        minds_(minds) {}
  void insert(Page page, bool cold) override {
    uses_[page] = 0;
    bool known = ghosts_.take(page);
    queues_.enter(known ? kMain : kSmall, page, !known && cold && minds_ == Minds::kernel);
  }
  void hit(Page page) override { uses_[page] = static_cast<uint8_t>(std::min(uses_[page] + 1, 3)); }
  void remove(Page page) override { queues_.remove(page); }
  Page evict() override {
    while (queues_.count(kSmall) + queues_.count(kMain) > 0) {
      bool from_small = queues_.count(kSmall) >= small_ || queues_.count(kMain) == 0;
      Page page = queues_.back(from_small ? kSmall : kMain);
      queues_.remove(page);
      if (from_small && uses_[page] <= 1) {
        ghosts_.add(page);
        return page;
      }
      if (!from_small && uses_[page] == 0) return page;
      uses_[page] = static_cast<uint8_t>(from_small ? 0 : uses_[page] - 1);
      queues_.push_front(kMain, page);
    }
    return 0;
  }

 private:
  static constexpr uint32_t kSmall = 0, kMain = 1;
  Queues queues_;
  std::vector<uint8_t> uses_;
  uint32_t small_;
  Ghosts ghosts_;
  Minds minds_;
};

/// The code that the cache runs.
class Shipped final : public Policy {
 public:
  explicit Shipped(const Trace& trace) : frames_(new Frame[trace.footprint() + 1]), eviction_(frames_.get()) {
    for (Page page = 1; page <= trace.footprint(); ++page) {
      std::tie(frames_[page].file, frames_[page].page) = trace.places[page];
      frames_[page].references.store(1);  // idle
    }
  }
  void insert(Page page, bool cold) override {
    eviction_.insert(page, cold ? Eviction::End::cold : Eviction::End::hot);
  }
  void hit(Page page) override { frames_[page].flags.fetch_or(Frame::kReferenced); }
  void use(Page page, bool cold) override {
    if (cold) eviction_.cool(page);
  }
  void remove(Page page) override { eviction_.remove(page); }
  Page evict() override {
    Page page = eviction_.victim();
    if (page != 0) {
      eviction_.remove(page);
      frames_[page].flags.store(0);
    }
    return page;
  }

 private:
  std::unique_ptr<Frame[]> frames_;
  Eviction eviction_;
};

/// Goes by what will be asked for: no policy is better (Belady). The bound, not a policy.
class Foreseeing final : public Policy {
 public:
  explicit Foreseeing(const Trace& trace) : next_(trace.footprint() + 1), uses_(trace.footprint() + 1) {
    uint64_t at = 0;
    for (const auto& request : trace.requests) {
      for (uint32_t index = 0; index < request.count; ++index, ++at) {
        if (request.kind == Kind::read || request.kind == Kind::direct_read)
          uses_[trace.pages[request.first + index]].push_back(at);
      }
    }
  }
  void now(uint64_t at) { at_ = at; }
  void insert(Page page, bool) override {
    auto& uses = uses_[page];
    while (!uses.empty() && uses.front() <= at_) uses.pop_front();
    next_[page] = uses.empty() ? UINT64_MAX - page : uses.front();
    queue_.emplace(next_[page], page);
  }
  void hit(Page page) override {
    remove(page);
    insert(page, false);
  }
  void remove(Page page) override { queue_.erase({next_[page], page}); }
  Page evict() override {
    if (queue_.empty()) return 0;
    Page page = queue_.rbegin()->second;
    remove(page);
    return page;
  }

 private:
  std::set<std::pair<uint64_t, Page>> queue_;
  std::vector<uint64_t> next_;
  std::vector<std::deque<uint64_t>> uses_;
  uint64_t at_ = 0;
};

// ---- the cache around a policy

class Simulation {
 public:
  Simulation(const Trace& trace, uint32_t capacity, Policy& policy)
      : trace_(trace),
        capacity_(capacity),
        policy_(policy),
        foreseeing_(dynamic_cast<Foreseeing*>(&policy)),
        where_(trace.footprint() + 1),
        ends_(trace.files.size()) {}

  double hit_ratio() {
    for (const auto& request : trace_.requests) {
      if (foreseeing_ != nullptr) foreseeing_->now(request.first + request.count - 1);
      while (!dirty_.empty() && request.ns - dirty_.front().ns > kFlushAgeNs) clean_oldest();
      std::span<const Page> pages(&trace_.pages[request.first], request.count);
      if (request.kind == Kind::drop) {
        for (Page page : pages) drop(page);
      } else if (request.kind == Kind::write) {
        for (Page page : pages) write(page, request.ns);
      } else {
        read(pages, request.kind == Kind::read);
      }
    }
    return static_cast<double>(hits_) / static_cast<double>(std::max<uint64_t>(trace_.read_pages, 1));
  }

 private:
  enum class Where : uint8_t { absent, clean, ahead, dirty };
  static constexpr uint64_t kFlushAgeNs = 100'000'000;
  static constexpr uint32_t kAheadPages = 128;

  void read(std::span<const Page> pages, bool cold) {
    missing_.clear();
    for (Page page : pages) {
      if (where_[page] == Where::absent) {
        missing_.push_back(page);
      } else if (where_[page] == Where::ahead) {
        where_[page] = Where::clean;
        policy_.use(page, cold);
      } else {
        ++hits_;
        if (where_[page] == Where::clean) policy_.hit(page);
      }
    }
    fetch(Where::clean, cold);
    if (!pages.empty() && foreseeing_ == nullptr) read_ahead(pages);
  }
  /// As in the cache: first the frames, then what goes into them. What does not fit is not kept.
  void fetch(Where as, bool cold) {
    uint32_t room = 0;
    while (room < missing_.size() && room < capacity_ / 2 && take_frame()) ++room;
    for (uint32_t index = 0; index < room; ++index) {
      where_[missing_[index]] = as;
      policy_.insert(missing_[index], cold);
    }
  }
  /// Where a request goes on from one of the last eight of its file. Simple, so that all policies are told the same.
  void read_ahead(std::span<const Page> pages) {
    auto [file, first] = trace_.places[pages.front()];
    uint32_t end = trace_.places[pages.back()].second + 1;
    auto& [ends, next] = ends_[file];
    auto stream = std::find(ends.begin(), ends.end(), first);
    bool goes_on = stream != ends.end();
    *(goes_on ? stream : ends.begin() + next++ % ends.size()) = end;
    if (!goes_on) return;
    missing_.clear();
    const auto& known = trace_.files[file];
    for (auto at = known.lower_bound(end); at != known.end() && at->first < end + std::min(kAheadPages, capacity_ / 8);
         ++at) {
      if (where_[at->second] == Where::absent) missing_.push_back(at->second);
    }
    fetch(Where::ahead, false);
  }
  void write(Page page, uint64_t ns) {
    if (where_[page] == Where::dirty) return;
    if (where_[page] != Where::absent) {
      policy_.remove(page);
    } else if (!take_frame()) {
      return;
    }
    where_[page] = Where::dirty;
    dirty_.push_back({ns, page});
    ++dirty_count_;
    while (dirty_count_ > std::max(capacity_ / 4, 1u)) clean_oldest();
  }
  void drop(Page page) {
    if (where_[page] == Where::absent) return;
    if (where_[page] == Where::dirty) {
      --dirty_count_;
    } else {
      policy_.remove(page);
    }
    where_[page] = Where::absent;
    --used_;
  }
  void clean_oldest() {
    Page page = dirty_.front().page;
    dirty_.pop_front();
    if (where_[page] != Where::dirty) return;  // dropped
    --dirty_count_;
    where_[page] = Where::clean;
    policy_.insert(page, true);
  }
  bool take_frame() {
    if (used_ == capacity_) {
      Page victim = policy_.evict();
      while (victim == 0 && !dirty_.empty()) {
        clean_oldest();
        victim = policy_.evict();
      }
      if (victim == 0) return false;
      where_[victim] = Where::absent;
      --used_;
    }
    ++used_;
    return true;
  }

  struct Dirty {
    uint64_t ns;
    Page page;
  };
  struct Ends {
    std::array<uint32_t, 8> pages{};
    uint32_t next = 0;
  };
  const Trace& trace_;
  uint32_t capacity_;
  Policy& policy_;
  Foreseeing* foreseeing_;
  std::vector<Where> where_;
  std::vector<Ends> ends_;  // of requests, by file
  std::vector<Page> missing_;
  std::deque<Dirty> dirty_;
  uint32_t dirty_count_ = 0;
  uint32_t used_ = 0;
  uint64_t hits_ = 0;
};

struct Contender {
  const char* name;
  std::function<std::unique_ptr<Policy>(const Trace&, uint32_t)> make;
};
template <typename Kind, typename... More>
Contender contender(const char* name, More... more) {
  return {name, [=](const Trace& trace, uint32_t capacity) -> std::unique_ptr<Policy> {
            if constexpr (sizeof...(more) == 0) {
              return std::make_unique<Kind>(trace);
            } else {
              return std::make_unique<Kind>(trace, capacity, more...);
            }
          }};
}
const std::vector<Contender> kContenders{
    contender<PlainLru>("LRU"),
    contender<SegmentedLru>("segmented LRU", Minds::nothing, false),
    contender<SegmentedLru>("segmented LRU, cold end, ghosts", Minds::kernel, true),
    contender<S3Fifo>("S3-FIFO", Minds::nothing),
    contender<S3Fifo>("S3-FIFO, cold end", Minds::kernel),
    contender<Shipped>("ours"),
    contender<Foreseeing>("bound"),
};
constexpr double kSizes[] = {1, 5, 10, 25, 50};  // per cent of the footprint

// ---- input and output

bool read_log(const char* path, TraceBuilder& builder) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, sizeof(Reference)> head{};
  file.read(head.data(), head.size());
  if (!file || head != kReferenceLogHead) {
    std::fprintf(stderr, "eviction_bench: %s is no log of references\n", path);
    return false;
  }
  Reference reference{};
  while (file.read(reinterpret_cast<char*>(&reference), sizeof reference)) builder.add(reference);
  return true;
}

/// Three long phases of skewed reads, each of other pages, as they come through a kernel's cache of a twentieth of
/// them.
Trace made_up() {
  constexpr uint32_t kPhases = 3, kPages = 20'480, kReads = 400'000, kKernelPages = kPhases * kPages / 20;
  TraceBuilder builder("made up: long phases, kernel short of memory");
  std::mt19937_64 random(1);
  std::vector<double> weights(kPages);
  for (uint32_t rank = 0; rank < kPages; ++rank) weights[rank] = 1 / std::pow(rank + 1, 1.1);
  std::discrete_distribution<uint32_t> skewed(weights.begin(), weights.end());
  Queues kernel(kPhases * kPages, 1);
  std::vector<bool> kept(kPhases * kPages + 1);
  for (uint32_t read = 0; read < kPhases * kReads; ++read) {
    // Popular pages do not lie together: 7919 and kPages have no common divisor.
    Page page = 1 + read / kReads * kPages + skewed(random) * 7919 % kPages;
    if (kept[page]) kernel.remove(page);
    if (!kept[page] && kernel.count(0) == kKernelPages) {
      kept[kernel.back(0)] = false;
      kernel.remove(kernel.back(0));
    }
    if (!kept[page]) builder.add({1, uint64_t{read} * 1000, page, 1, static_cast<uint8_t>(Kind::read)});
    kernel.push_front(0, page);
    kept[page] = true;
  }
  return builder.take();
}

void print(const Trace& trace) {
  std::printf("{\"trace\": \"%s\", \"requests\": %zu, \"readPages\": %lu, \"footprintPages\": %u, \"hitRatios\": {",
              trace.name.c_str(), trace.requests.size(), trace.read_pages, trace.footprint());
  const char* between = "";
  for (const auto& [name, make] : kContenders) {
    std::printf("%s\n  \"%s\": [", between, name);
    between = "";
    for (double size : kSizes) {
      auto capacity = std::max(static_cast<uint32_t>(trace.footprint() * size / 100), 16u);
      auto policy = make(trace, capacity);
      std::printf("%s%.1f", between, 100 * Simulation(trace, capacity, *policy).hit_ratio());
      between = ", ";
    }
    std::printf("]");
    between = ",";
  }
  std::printf("}}");
}

int run(std::span<char*> arguments) {
  std::printf("[");
  for (char*& argument : arguments) {
    char* path = std::strchr(argument, '=');
    if (path == nullptr) {
      std::fprintf(stderr, "eviction_bench: NAME=LOG, not %s\n", argument);
      return 2;
    }
    TraceBuilder builder(std::string(argument, path));
    if (!read_log(path + 1, builder)) return 1;
    print(builder.take());
    std::printf(",\n");
  }
  print(made_up());
  std::printf("]\n");
  return 0;
}

}  // namespace
}  // namespace extmem::cache

int main(int argc, char** argv) { return extmem::cache::run(std::span(argv + 1, static_cast<size_t>(argc - 1))); }
