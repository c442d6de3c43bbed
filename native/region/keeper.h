// Keeps regions in the backing store: persists what has changed, takes out of the store what a region that was restored
// does not have yet, and sees to it that nothing that was freed or destroyed is found there by the next owner.
//
// Threads: persist, settle_freed and remove may be called by any; one of them is at work at a time. persist takes its
// time and lets the others, for which somebody waits, go first; in the background it lets every other persist go first
// too, and keeps to a rate. Threads of its own bring absent blocks home: those that somebody waits for first, then all
// others.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "region/pace.h"
#include "region/region_table.h"
#include "store/store.h"

namespace extmem::region {

class Keeper {
 public:
  struct Options {
    std::string path;
    store::Store::Options store;
    bool lazily = false;            ///< restored blocks come when they are asked for only
    uint64_t bytes_per_second = 0;  ///< what is put in the background at most; 0: as much as there is
  };
  using Piece = RegionServer::Piece;
  using Progress = RegionServer::PersistProgress;
  using Freed = RegionServer::Freed;
  struct Job {
    std::vector<Piece> pieces{};  ///< none: everything
    /// Of this incarnation nobody writes any more and nobody will (else 0): what is stored is then known to be exact.
    uint64_t ending = 0;
    bool background = false;  ///< nobody waits for it
    /// Not null: what is meant gives its memory back once it is in the store, but for blocks that are written meanwhile
    /// and regions that clients hold the memory of. Until all of a region is home again, it is served by messages.
    Freed* freed = nullptr;
  };

  static std::unique_ptr<Keeper> open(const Options& options, RegionTable& regions, MemoryAccount& account,
                                      std::string& error);
  ~Keeper();

  /// What regions have come back. Before anybody is served.
  std::vector<RestoredRegion> restore();
  /// What is absent of that region is asked of this keeper. Before anybody else knows it.
  void answer_for(Region& region);
  /// Begins to bring blocks home.
  void start();
  void stop();

  /// The incarnation whose memory was stored as it was last acknowledged, all of it; 0: that is not so.
  uint64_t ended_incarnation() const { return store_->life(); }
  /// What is meant, as it is now (in the background: as it was at some moment since), durable when it answers ok.
  store::Verdict persist(const Job& job, const std::function<void(const Progress&)>& tell);
  /// What is under way in the background comes to an early end.
  void end_background();
  /// What was punched of regions that are in the store is punched there too, durably.
  store::Verdict settle_freed(const std::vector<Piece>& pieces);
  store::Verdict remove(const std::vector<uint64_t>& regions);
  /// Before a range of it is punched: the blocks that this touches in part are here, if it answers ok.
  Status bring_edges(Region& region, uint64_t offset, uint64_t bytes);
  /// From now on what is stored falls behind what is acknowledged; durable.
  store::Verdict begin_serving();

  StoreStatus status() const;

 private:
  struct Run {
    uint64_t first = 0;
    std::vector<uint8_t> bytes;
  };
  /// A region whose blocks come home without being asked for: those before `next` were, those before `ahead` are read.
  struct Left {
    std::shared_ptr<Region> region;
    uint64_t next = 0, ahead = 0;
  };
  /// Blocks to be brought home, and those that will soon be.
  struct Stretch {
    std::shared_ptr<Region> region;
    uint64_t first = 0, end = 0, soon_first = 0, soon_end = 0;
  };
  enum class Halt : uint8_t { no, gone, interrupted };
  /// Of one persist().
  struct Pass {
    std::unique_lock<std::mutex> guard;  // of jobs_lock_
    const Job& job;
    const std::function<void(const Progress&)>& tell;
    Progress progress{};
    Halt halt = Halt::no;
    bool is_exact = false;     // what is stored of the region is to be all there is: nobody's marks are believed
    uint64_t reached = 0;      // interrupted before this block
    uint64_t patience = 0;     // in the background: so many more blocks before it lets another persist go first
    uint64_t resume_ns = 0;    // for what was put it is to wait until then
    uint64_t paced_bytes = 0;  // of persisted_bytes_, what was counted for that
    uint64_t rested_ns = 0, committed_ns = 0;
  };
  /// Of blocks: first, and the one behind the last.
  using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;
  struct Meant {
    std::shared_ptr<Region> region;
    Ranges ranges;
    std::optional<uint64_t> given{};  // Region::unshared(), if its memory is to be given back
  };
  using Chosen = std::vector<Meant>;
  class Asked;
  /// The lock for what persist() lets go first.
  class Urgent {
   public:
    explicit Urgent(Keeper& keeper);
    ~Urgent();

   private:
    Keeper& keeper_;
  };

  Keeper(std::unique_ptr<store::Store> store, const Options& options, RegionTable& regions, MemoryAccount& account);
  void restore_records(Region& region);
  static Ranges merge(Ranges ranges, uint64_t group);
  Chosen choose(const Job& job) const;
  void give_memory_back(const Chosen& chosen, Pass& pass);
  void leave_in_store(const Region& region);
  store::Verdict persist_region(const Meant& meant, Pass& pass);
  store::Verdict persist_range(Region& region, uint64_t first, uint64_t end, Pass& pass);
  static void give_back(Region& region, const Region::Changes& changes, uint64_t from);
  store::Verdict put_blocks(Region& region, const Region::Changes& changes, Pass& pass);
  store::Verdict give_way(Region& region, Run& run, uint64_t block, Pass& pass);
  bool others_go_first(bool asked_too) const;
  void rest(Pass& pass);
  store::Verdict put_one(Region& region, uint64_t block, bool unseen, Run& run);
  store::Verdict flush(Region& region, Run& run);
  store::Verdict put_records(Region& region);
  bool is_stored(uint64_t region) const;
  void bring_home();
  Stretch take_stretch();
  Status load(Region& region, uint64_t block);

  const std::unique_ptr<store::Store> store_;
  const bool lazily_;
  RegionTable& regions_;
  MemoryAccount& account_;

  /// One persist that somebody waits for at a time, taken before jobs_lock_: where that is let go for a while, no other
  /// takes the marks of what is to be freed.
  std::mutex awaited_lock_;
  std::mutex jobs_lock_;  // one of persist, settle_freed, remove
  std::atomic<unsigned> urgent_{0};
  std::atomic<unsigned> asked_{0};  // persists that somebody waits for
  std::atomic<bool> background_ended_{false};
  std::condition_variable none_urgent_;
  Pace pace_;  // guarded by jobs_lock_
  /// Of blocks of regions that are written without marks: what was put last. Guarded by jobs_lock_.
  std::unordered_map<uint64_t, std::vector<uint64_t>> hashes_;
  std::unordered_map<uint64_t, uint64_t> record_hashes_;

  mutable std::mutex wanted_lock_;
  std::condition_variable wanted_changed_;
  std::deque<std::pair<std::weak_ptr<Region>, uint64_t>> wanted_;
  std::deque<Left> left_;
  bool stopping_ = false;
  std::vector<std::thread> bringers_;
  std::atomic<uint64_t> persisted_blocks_{0}, persisted_bytes_{0};
  std::atomic<uint64_t> persist_ns_{0};
};

}  // namespace extmem::region
