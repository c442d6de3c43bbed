// A mount of the simulated cluster without the kernel: the shipped page cache, extents and fabric on a reactor that is
// stepped. What a session (native/fuse) and the client's TypeScript do around them, this does in short.
//
// Lives as long as the simulation, so that what is under way when it is stopped finds it; its program may be over long
// before.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "base/task.h"
#include "cache/flusher.h"
#include "cache/page_cache.h"
#include "simulation/manager.h"
#include "simulation/model.h"

namespace extmem::simulation {

/// A file that this mount has, or may have.
struct Opened {
  FileId id = 0;
  cache::File* file = nullptr;  // with a reference
  cache::Handle handle{};
  bool for_writing = false;
  bool busy = false;    // one thing at a time
  bool asking = false;  // of the manager, for more: what there is may be given back meanwhile
  bool recalled = false;
};

class Mount final : public extent::ControlPlane, public Holder {
 public:
  struct Place {
    Network& network;
    Manager& manager;
    std::vector<std::unique_ptr<Appliance>>& appliances;
    HostId host;
    uint64_t file_bytes;  ///< of every file from its creation on, all of it a hole at first
  };
  explicit Mount(const Place& place);
  ~Mount();

  Reactor& reactor() { return reactor_; }
  HostId host() const override { return place_.host; }
  ClientId client() const { return client_; }
  bool stopped() const { return stopped_; }
  /// Nothing runs here any more.
  bool over() const { return stopped_ && active_ == 0; }
  bool may_work() const { return client_ != 0 && !rejoining_; }
  Opened& opened(FileId id);
  /// Whether memory that the file names is gone.
  bool names_lost_memory(const Opened& opened) const;

  /// Kills the program. Silently: its host too.
  void stop(Model& model, bool silently);

  // Errnos. The file is `busy`.
  Task<int> open(Opened& opened, bool for_writing);
  Task<int> read(Opened& opened, uint64_t offset, std::span<std::byte> into);
  Task<int> write(Opened& opened, uint64_t offset, std::span<const std::byte> data);
  Task<int> sync(Opened& opened);
  /// Forgets what is clean, as memory pressure would.
  void drop_pages(Opened& opened);

  /// Counts a coroutine that runs on by itself.
  class Active {
   public:
    explicit Active(Mount& mount) : mount_(mount) { ++mount.active_; }
    ~Active() { --mount_.active_; }
    Active(const Active&) = delete;
    Active& operator=(const Active&) = delete;

   private:
    Mount& mount_;
  };

 private:
  struct Question;
  using Send = std::function<void(Manager&, Manager::Answer)>;

  void ask(extent::ControlCall& call) override;
  void recall(FileId file) override;
  void put_appliance(unsigned index, uint64_t incarnation) override;
  Detached answer_call(extent::ControlCall& call);
  Detached give_back(FileId id);
  Detached keep_in_touch();
  Detached join_anew();
  Task<int> join();
  /// How long an answer is waited for, and what the errno is then.
  struct Patience {
    uint64_t ns;
    int error;
  };
  Task<Granted> ask_manager(Send send, Patience patience);
  void settle(uint64_t question, Granted granted);
  void settle_all();
  void put_regions(const std::vector<RegionGrant>& grants, bool provisioned);
  void release(Opened& opened);
  fabric::Credentials credentials() const;

  const Place place_;
  fabric::sim::World& world_;
  Reactor reactor_;
  fabric::Directory directory_;
  cache::PageCache cache_;
  std::unique_ptr<fabric::Fabric> fabric_;
  cache::Lane lane_;
  cache::BackgroundFlusher flusher_;
  ClientId client_ = 0;
  bool stopped_ = false;
  bool rejoining_ = false;
  unsigned active_ = 0;
  std::map<FileId, Opened> opened_;
  std::map<uint64_t, std::pair<uint64_t, bool>> known_;  // regions: incarnation, whether writable
  std::map<uint64_t, Question*> questions_;
  uint64_t next_question_ = 1;
};

}  // namespace extmem::simulation
