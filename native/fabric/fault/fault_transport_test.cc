#include "fabric/fault/fault_transport.h"

#include <doctest/doctest.h>

using namespace extmem::fabric;

TEST_CASE("a fault plan is read as it is written") {
  FaultPlan plan;
  std::string error;
  REQUIRE(FaultPlan::parse("delay=0.1:5ms,error=0.01:no_space,cut=0.001,reorder=0.5,lost=0.2", plan, error));
  CHECK(error.empty());
  CHECK(plan.delay.probability == 0.1);
  CHECK(plan.delay.duration_ns == 5'000'000);
  CHECK(plan.error.status == Status::no_space);
  CHECK(plan.lost.status == Status::timed_out);
  CHECK(plan.reorder.probability == 0.5);
  CHECK(plan.cut.probability == 0.001);
}

TEST_CASE("what is no fault plan is refused with its reason") {
  for (const char* text : {"delay=0.1", "delay=0.1:5", "burn=0.1", "cut", "cut=2", "cut=x", "error=0.1:nonsense"}) {
    FaultPlan plan;
    std::string error;
    CHECK_FALSE(FaultPlan::parse(text, plan, error));
    CHECK(error.find(text) != std::string::npos);
  }
}
