#include "region/link_table.h"

#include <doctest/doctest.h>

using namespace extmem::region;
using extmem::protocol::Status;

namespace {

struct Mortal final : Killable {
  bool dead = false;
  void kill(Status) override { dead = true; }
  void revise(const AccessChange&) override {}
  void end_overdue(uint64_t) override {}
};

}  // namespace

TEST_CASE("a newer generation of a link kills the older connection; an older or equal one is fenced") {
  LinkTable table;
  auto first = std::make_shared<Mortal>(), second = std::make_shared<Mortal>();
  const LinkTable::Link link{.client = 1, .client_generation = 1, .link = 0};
  CHECK(table.enter(link, 5, first) == Status::ok);
  CHECK(table.enter(link, 5, second) == Status::fenced);
  CHECK(table.enter(link, 4, second) == Status::fenced);
  CHECK_FALSE(first->dead);
  CHECK(table.enter(link, 6, second) == Status::ok);
  CHECK(first->dead);
  CHECK_FALSE(second->dead);
}

TEST_CASE("links and clients do not disturb each other") {
  LinkTable table;
  auto first = std::make_shared<Mortal>(), second = std::make_shared<Mortal>(), third = std::make_shared<Mortal>();
  CHECK(table.enter({.client = 1, .client_generation = 1, .link = 0}, 5, first) == Status::ok);
  CHECK(table.enter({.client = 1, .client_generation = 1, .link = 1}, 1, second) == Status::ok);
  CHECK(table.enter({.client = 2, .client_generation = 1, .link = 0}, 9, third) == Status::ok);
  CHECK_FALSE(first->dead);
  CHECK(table.fence({.first = 1, .last = 1}) == 1);
  CHECK(first->dead);
  CHECK(second->dead);
  CHECK_FALSE(third->dead);
}

TEST_CASE("fencing holds for good, whatever the generation, and for the clients that are meant") {
  LinkTable table;
  auto old = std::make_shared<Mortal>(), next = std::make_shared<Mortal>();
  CHECK(table.enter({.client = 4, .client_generation = 3, .link = 0}, 1, next) == Status::ok);
  CHECK(table.fence({.first = 1, .last = 3}) == 0);
  CHECK_FALSE(next->dead);
  for (uint64_t client : {1, 2, 3})
    CHECK(table.enter({.client = client, .client_generation = 9, .link = 7}, 100, old) == Status::fenced);
  CHECK(table.enter({.client = 4, .client_generation = 3, .link = 0}, 2, old) == Status::ok);
  CHECK(next->dead);
}

TEST_CASE("what is fenced is kept in as few ranges as there are gaps") {
  LinkTable table;
  for (uint64_t client = 1; client < 1000; client += 2) table.fence({.first = client, .last = client});
  CHECK(table.fenced_ranges() == 500);
  CHECK_FALSE(table.fenced(2));
  table.fence({.first = 1, .last = 499});  // those between have left
  table.fence({.first = 501, .last = 999});
  CHECK(table.fenced_ranges() == 2);
  CHECK(table.fenced(2));
  CHECK_FALSE(table.fenced(500));
  table.fence({.first = 500, .last = 500});
  CHECK(table.fenced_ranges() == 1);
  CHECK_FALSE(table.fenced(0));
  CHECK_FALSE(table.fenced(1000));
}
