#include "region/link_table.h"

#include <doctest/doctest.h>

using namespace extmem::region;
using extmem::protocol::Status;

namespace {

struct Mortal final : Killable {
  bool dead = false;
  void kill(Status) override { dead = true; }
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
  CHECK(table.fence(1, 1) == 2);
  CHECK(first->dead);
  CHECK(second->dead);
  CHECK_FALSE(third->dead);
}

TEST_CASE("fencing holds for that generation and all before it, and for good") {
  LinkTable table;
  auto old = std::make_shared<Mortal>(), next = std::make_shared<Mortal>();
  CHECK(table.enter({.client = 1, .client_generation = 3, .link = 0}, 1, next) == Status::ok);
  CHECK(table.fence(1, 2) == 0);
  CHECK_FALSE(next->dead);
  CHECK(table.enter({.client = 1, .client_generation = 2, .link = 7}, 100, old) == Status::fenced);
  CHECK(table.fence(1, 1) == 0);
  CHECK(table.fenced(1, 2));
  CHECK_FALSE(table.fenced(1, 3));
}
