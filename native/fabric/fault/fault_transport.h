// The `fault` transport: another Fabric, with trouble. What happens to which operation follows from the seed and the
// order of submissions alone, so that a failure can be played again.
//
// Plan: comma-separated `what=probability[:argument]`
//   delay=0.1:5ms        held back for that long (us, ms or s) before it is passed on
//   reorder=0.1          held back until the next one has been passed on, 2 ms at most
//   error=0.01:timed_out fails with that status without having been done
//   lost=0.01:timed_out  is done, and then told as failed: an outcome that the caller cannot know
//   cut=0.001            the connection to its appliance is severed just before
//
// The contract holds: an operation whose deadline passes while it is held back completes then, with timed_out.
#pragma once

#include <memory>
#include <random>
#include <string>

#include "base/reactor.h"
#include "fabric/router.h"
#include "fabric/transport.h"

namespace extmem::fabric {

struct FaultPlan {
  struct Chance {
    double probability = 0;
    uint64_t duration_ns = 0;
    Status status = Status::timed_out;
  };
  Chance delay, reorder, error, lost, cut;
  /// False: not a plan; `error` says what is wrong with it.
  static bool parse(const std::string& text, FaultPlan& plan, std::string& error);
};

class FaultTransport final : public Fabric {
 public:
  FaultTransport(Reactor& reactor, std::unique_ptr<Router> inner, uint64_t seed, const std::string& plan);
  ~FaultTransport() override;

  void submit(Operation& operation) override;
  void close() override;
  /// What is held back goes out later, to regions that are lost.
  void rejoin(const Credentials& credentials) override { inner_->rejoin(credentials); }

 private:
  struct Held;
  struct Falsified;
  bool happens(const FaultPlan::Chance& chance);
  void hold(Operation& operation, uint64_t duration_ns);
  void let_go(Held& held);
  void pass(Operation& operation);
  void falsify(Operation& operation);

  Reactor& reactor_;
  std::unique_ptr<Router> inner_;
  FaultPlan plan_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<Held>> held_;
  Held* reordered_ = nullptr;
  bool closed_ = false;
};

}  // namespace extmem::fabric
