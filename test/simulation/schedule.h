// One schedule: a cluster, what its mounts do to shared files, and what goes wrong meanwhile, all from one seed. Then
// everything is healed, and must be well again.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fabric/sim/network.h"
#include "fabric/sim/world.h"
#include "simulation/appliance.h"
#include "simulation/manager.h"
#include "simulation/model.h"
#include "simulation/mount.h"

namespace extmem::simulation {

struct Outcome {
  std::string wrong;  ///< empty: nothing
  uint64_t hash = 0;
  uint64_t events = 0;
  uint64_t reads = 0, writes = 0, syncs = 0, failures = 0;
  std::map<std::string, uint64_t> faults;
  std::vector<std::string> last_events;
};

class Schedule {
 public:
  explicit Schedule(uint64_t seed);
  ~Schedule();
  Outcome run();

 private:
  struct Slot {
    HostId host;
    Mount* mount = nullptr;  // null: its program does not run
  };
  /// What a mount is in the middle of.
  struct Call {
    const char* what;
    uint64_t begun_ns;
  };

  void run_until(uint64_t time_ns);
  bool turn_reactors();
  void fail(std::string wrong);
  void start_mount(Slot& slot);

  // What mounts do.
  Detached work(Mount& mount);
  Task<int> do_something(Mount& mount, Opened& opened);
  Task<int> do_read(Mount& mount, Opened& opened, CellRange cells);
  Task<int> do_write(Mount& mount, Opened& opened, CellRange cells);
  Task<int> do_sync(Mount& mount, Opened& opened);
  Task<int> do_open(Mount& mount, Opened& opened, bool for_writing);
  CellRange some_cells();
  uint64_t begin_call(const char* what);
  void end_call(uint64_t call, const Mount& mount, const Opened& opened, int error);
  void replace_if_lost(const Mount& mount, const Opened& opened);
  Detached verify(Mount& mount);
  Task<int> verify_file(Mount& mount, Opened& opened);

  // What goes wrong.
  void next_fault();
  void cause_fault();
  void cut_way(HostId one, HostId other);
  void lose_touch();
  void stop_appliance();
  void stop_mount();
  void stop_manager();
  HostId some_host();
  void note_trouble(const char* fault, uint64_t lasts_ns);
  void heal();

  fabric::sim::World world_;
  fabric::sim::Network network_;
  Model model_;
  std::vector<std::unique_ptr<Appliance>> appliances_;
  Manager manager_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Mount>> mounts_;  // all that ever were

  /// What they work on. One that has lost memory for good is replaced by another.
  std::vector<FileId> files_;
  FileId next_file_ = 1;
  bool working_ = true, causing_faults_ = true;
  uint64_t last_trouble_ns_ = 0;
  Version next_version_ = 1;
  std::map<uint64_t, Call> calls_;
  uint64_t next_call_ = 1;
  unsigned verifying_ = 0;
  Outcome outcome_;
};

}  // namespace extmem::simulation
