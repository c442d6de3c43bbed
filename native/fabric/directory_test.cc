#include <doctest/doctest.h>

#include "fabric/transport.h"

using namespace extmem;
using namespace extmem::fabric;

TEST_CASE("a new incarnation loses the regions of the old one, and an id that is given again names a new region") {
  Directory directory;
  Appliance& appliance = directory.put_appliance("a", "h", "127.0.0.1", 1, "", 1);
  Appliance& other = directory.put_appliance("b", "h", "127.0.0.1", 2, "", 1);
  Region& old = directory.put_region(1, 4096, appliance, {});
  Region& untouched = directory.put_region(2, 4096, other, {});
  CHECK(&directory.put_region(1, 8192, appliance, {}) == &old);
  CHECK(old.bytes == 8192);
  CHECK(&directory.put_appliance("a", "h", "127.0.0.1", 3, "", 1) == &appliance);
  CHECK(old.state == RegionState::live);
  directory.put_appliance("a", "h", "127.0.0.1", 3, "", 2);
  CHECK(appliance.endpoints == std::vector<Endpoint>{{.address = "127.0.0.1", .port = 3}});
  CHECK(old.state == RegionState::lost);
  CHECK(untouched.state == RegionState::live);
  Region& fresh = directory.put_region(1, 4096, appliance, {});
  CHECK(&fresh != &old);
  CHECK(directory.find_region(1) == &fresh);
  CHECK(old.state == RegionState::lost);
  directory.lose_region(2);
  CHECK(untouched.state == RegionState::lost);
  CHECK(directory.find_appliance("b") == &other);
  CHECK(directory.appliances().size() == 2);
}
