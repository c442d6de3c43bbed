#include "region/sums.h"

#include <doctest/doctest.h>

#include "region/region.h"

using namespace extmem;
using namespace extmem::region;

TEST_CASE("what is the same has the same hashes, wherever it lies; one byte more or less is seen in its block alone") {
  constexpr uint64_t kBlock = protocol::kSumBytes;
  MemoryAccount account(uint64_t{16} << 20);
  Status status = Status::ok;
  auto region = Region::create({.id = 1, .bytes = uint64_t{1} << 20, .thin = false}, account, status);
  REQUIRE(status == Status::ok);
  const std::vector<uint8_t> data(3 * kBlock - 4096, 7);
  CHECK(region->write(0, data)->status == Status::ok);
  CHECK(region->write(8 * kBlock + 4096, data)->status == Status::ok);
  std::vector<uint64_t> here, there, holes;
  CHECK(sum_region(*region, 0, data.size(), here) == Status::ok);
  CHECK(sum_region(*region, 8 * kBlock + 4096, data.size(), there) == Status::ok);
  CHECK(here.size() == 3);
  CHECK(here == there);
  CHECK(sum_region(*region, 4 * kBlock, 2 * kBlock, holes) == Status::ok);
  CHECK(holes[0] == holes[1]);

  CHECK(region->write(8 * kBlock + 4096 + kBlock, std::vector<uint8_t>(1, 8))->status == Status::ok);
  there.clear();
  CHECK(sum_region(*region, 8 * kBlock + 4096, data.size(), there) == Status::ok);
  CHECK(here[0] == there[0]);
  CHECK(here[1] != there[1]);
  CHECK(here[2] == there[2]);
  CHECK(sum_region(*region, uint64_t{1} << 20, 4096, there) == Status::out_of_range);
}
