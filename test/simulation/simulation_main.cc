// The simulation: whole clusters in one process, each from one seed (docs/adr/0025-simulation.md).
//
//   simulation [--seed N] [--schedules N] [--seconds N]
//
// Runs the schedules of the seeds N, N+1, ...; without --seed of a fresh one, which is printed. With --seconds no new
// one is begun after so long. Ends with 1 when something was wrong: the seed, the last events, and how to play it again
// are printed.
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include "simulation/schedule.h"

namespace extmem::simulation {
namespace {

struct Arguments {
  uint64_t seed = std::random_device{}();
  uint64_t schedules = 1000;
  uint64_t seconds = UINT64_MAX;
};

bool parse(int count, char** texts, Arguments& arguments) {
  for (int index = 1; index < count; index += 2) {
    const std::string name = texts[index];
    uint64_t* place = name == "--seed"        ? &arguments.seed
                      : name == "--schedules" ? &arguments.schedules
                      : name == "--seconds"   ? &arguments.seconds
                                              : nullptr;
    if (place == nullptr || index + 1 == count) return false;
    char* end = nullptr;
    *place = std::strtoull(texts[index + 1], &end, 10);
    if (end == texts[index + 1] || *end != 0) return false;
  }
  return true;
}

void tell_wrong(uint64_t seed, const Outcome& outcome) {
  for (const std::string& line : outcome.last_events) std::printf("%s\n", line.c_str());
  std::printf("seed %" PRIu64 ": %s\n", seed, outcome.wrong.c_str());
  std::printf("to play it again: npm run test:simulation -- --seed %" PRIu64 " --schedules 1\n", seed);
}

int run(const Arguments& arguments) {
  std::printf("simulation: seeds from %" PRIu64 " on\n", arguments.seed);
  std::fflush(stdout);
  Outcome sum;
  uint64_t done = 0;
  const auto begun = std::chrono::steady_clock::now();
  auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(); };
  for (; done < arguments.schedules && seconds() < static_cast<double>(arguments.seconds); ++done) {
    const uint64_t seed = arguments.seed + done;
    const Outcome outcome = Schedule(seed).run();
    if (!outcome.wrong.empty()) {
      tell_wrong(seed, outcome);
      return 1;
    }
    if (arguments.schedules == 1) std::printf("hash %016" PRIx64 "\n", outcome.hash);
    sum.events += outcome.events;
    sum.reads += outcome.reads;
    sum.writes += outcome.writes;
    sum.syncs += outcome.syncs;
    sum.failures += outcome.failures;
    for (auto& [fault, times] : outcome.faults) sum.faults[fault] += times;
  }
  std::printf("%" PRIu64 " schedules in %.1f s: %" PRIu64 " reads checked, %" PRIu64 " writes, %" PRIu64
              " fsyncs; %" PRIu64 " calls failed of",
              done, seconds(), sum.reads, sum.writes, sum.syncs, sum.failures);
  for (auto& [fault, times] : sum.faults) std::printf(" %s %" PRIu64, fault.c_str(), times);
  std::printf("\n");
  return 0;
}

}  // namespace
}  // namespace extmem::simulation

int main(int count, char** texts) {
  extmem::simulation::Arguments arguments;
  if (!extmem::simulation::parse(count, texts, arguments)) {
    std::fprintf(stderr, "usage: simulation [--seed N] [--schedules N] [--seconds N]\n");
    return 2;
  }
  return extmem::simulation::run(arguments);
}
