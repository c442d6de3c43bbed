// Extents, slabs, growth and records, without any appliance: regions are only named here.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>

#include "extent/domains.h"
#include "extent/file_record.h"
#include "extent/growth.h"

namespace extmem::extent {
namespace {

constexpr uint64_t kMiB = 1 << 20;

struct Pool {
  explicit Pool(unsigned appliances, uint64_t bytes_each) {
    for (unsigned index = 0; index < appliances; ++index) {
      auto& appliance = directory.put_appliance("appliance" + std::to_string(index), "", "127.0.0.1", 1, "", 1);
      slabs.add_region(directory.put_region(index + 1, bytes_each, appliance, {}), {});
    }
  }
  fabric::Directory directory;
  SlabAllocator slabs;
};

FileAttributes file(uint64_t ino, LayoutKind layout = LayoutKind::stripe) {
  FileAttributes attributes;
  attributes.ino = ino;
  attributes.layout = layout;
  return attributes;
}

TEST_CASE("a striped extent visits its members unit by unit") {
  Pool pool(2, 64 * kMiB);
  ExtentMap map;
  Member members[] = {{pool.directory.find_region(1), 4 * kMiB}, {pool.directory.find_region(2), 8 * kMiB}};
  map.insert(2 * kMiB, 8 * kMiB, {2 * kMiB}, members);
  auto piece = map.resolve(2 * kMiB + 5, 16 * kMiB);
  CHECK(piece.copies[0].region->id == 1);
  CHECK(piece.copies[0].offset == 4 * kMiB + 5);
  CHECK(piece.length == 2 * kMiB - 5);
  piece = map.resolve(8 * kMiB, kMiB);  // fourth unit: second of member 2
  CHECK(piece.copies[0].region->id == 2);
  CHECK(piece.copies[0].offset == 10 * kMiB);
  CHECK(map.resolve(0, 16 * kMiB).is_hole());
  CHECK(map.resolve(0, 16 * kMiB).length == 2 * kMiB);
  CHECK(map.resolve(10 * kMiB, 16 * kMiB).is_hole());
}

TEST_CASE("holes and data are found where they are") {
  Pool pool(1, 64 * kMiB);
  ExtentMap map;
  Member member{pool.directory.find_region(1), 0};
  map.insert(4096, 4096, one_column(4096, 1), {&member, 1});
  map.insert(8192, 4096, one_column(4096, 1), {&member, 1});
  CHECK(map.next_hole(0) == 0);
  CHECK(map.next_hole(5000) == 12288);
  CHECK(map.next_data(0) == 4096);
  CHECK(map.next_data(9000) == 9000);
  CHECK_FALSE(map.next_data(12288).has_value());
}

TEST_CASE("a file of one page takes one page") {
  Pool pool(2, 64 * kMiB);
  ExtentMap map;
  uint64_t before = pool.slabs.free_bytes();
  REQUIRE(grow(map, file(3), {0, 4096, false}, pool.slabs));
  CHECK(map.allocated_bytes() == 4096);
  CHECK(before - pool.slabs.free_bytes() == 4096);
}

TEST_CASE("a growing file needs few extents and at most an eighth more than it uses") {
  Pool pool(2, 1024 * kMiB);
  ExtentMap map;
  for (uint64_t at = 0; at < 1024 * kMiB; at += kMiB) REQUIRE(grow(map, file(1), {at, at + kMiB, false}, pool.slabs));
  CHECK(map.extents().size() < 64);
  CHECK(map.allocated_bytes() <= 1024 * kMiB + 128 * kMiB + 4 * kMiB);
}

TEST_CASE("stripes use every appliance alike, to a unit") {
  Pool pool(4, 256 * kMiB);
  ExtentMap map;
  REQUIRE(grow(map, file(1), {0, 256 * kMiB, false}, pool.slabs));
  std::array<uint64_t, 5> bytes{};
  for (uint64_t at = 0; at < 256 * kMiB; at += 2 * kMiB) bytes[map.resolve(at, 1).copies[0].region->id] += 2 * kMiB;
  for (unsigned region = 1; region <= 4; ++region) {
    CHECK(bytes[region] >= 62 * kMiB);
    CHECK(bytes[region] <= 66 * kMiB);
  }
}

TEST_CASE("what is trimmed off the end goes back to the byte, and what is left lies where it did") {
  for (unsigned appliances : {1u, 2u, 3u}) {
    for (uint64_t size : {uint64_t{5 * 4096}, uint64_t{513 * 4096}, 21 * kMiB + 4096, 64 * kMiB + 12288}) {
      INFO("appliances ", appliances, ", size ", size);
      Pool pool(appliances, 256 * kMiB);
      const uint64_t all = pool.slabs.free_bytes();
      ExtentMap map;
      for (uint64_t at = 0; at < size; at += 128 * 1024)
        REQUIRE(grow(map, file(1), {at, std::min(size, at + 128 * 1024), false}, pool.slabs));
      std::vector<std::pair<uint64_t, uint64_t>> before;
      for (uint64_t at = 0; at < size; at += 4096) {
        auto piece = map.resolve(at, 4096);
        before.emplace_back(piece.copies[0].region->id, piece.copies[0].offset);
      }
      for (auto& freed : map.trim(size)) pool.slabs.free(freed.region, freed.offset, freed.bytes);
      CHECK(map.end() == size);
      CHECK(map.allocated_bytes() == size);
      CHECK(map.next_hole(0) == size);
      CHECK(all - pool.slabs.free_bytes() == size);
      for (uint64_t at = 0; at < size; at += 4096) {
        auto piece = map.resolve(at, 4096);
        REQUIRE(std::pair(piece.copies[0].region->id, piece.copies[0].offset) == before[at / 4096]);
      }
      REQUIRE(grow(map, file(1), {size, size + 8 * kMiB, false}, pool.slabs));
      CHECK(map.next_hole(0) >= size + 8 * kMiB);
      map.trim(0);
      CHECK(map.extents().empty());
      CHECK(map.allocated_bytes() == 0);
    }
  }
}

TEST_CASE("growth that does not fit leaves everything as it was") {
  Pool pool(2, 4 * kMiB);
  ExtentMap map;
  REQUIRE(grow(map, file(1), {0, kMiB, true}, pool.slabs));
  uint64_t free_before = pool.slabs.free_bytes();
  uint64_t allocated_before = map.allocated_bytes();
  CHECK_FALSE(grow(map, file(1), {kMiB, 64 * kMiB, true}, pool.slabs));
  CHECK(pool.slabs.free_bytes() == free_before);
  CHECK(map.allocated_bytes() == allocated_before);
}

TEST_CASE("the last scraps of the pool can be used") {
  Pool pool(2, kMiB);
  ExtentMap map;
  uint64_t at = 0;
  while (grow(map, file(1), {at, at + 4096, true}, pool.slabs)) at += 4096;
  CHECK(at == 2 * kMiB);
  CHECK(pool.slabs.free_bytes() == 0);
}

TEST_CASE("freed pieces join and are carved again") {
  Pool pool(1, 4 * kMiB);
  auto* appliance = pool.directory.appliances()[0];
  auto first = pool.slabs.allocate(*appliance, kMiB);
  auto second = pool.slabs.allocate(*appliance, kMiB);
  REQUIRE((first && second));
  CHECK_FALSE(pool.slabs.allocate(*appliance, 4 * kMiB));
  pool.slabs.free(1, first->offset, kMiB);
  pool.slabs.free(1, second->offset, kMiB);
  CHECK(pool.slabs.allocate(*appliance, 4 * kMiB));
}

TEST_CASE("a region is provisioned without what is used of it") {
  fabric::Directory directory;
  auto& appliance = directory.put_appliance("a", "", "127.0.0.1", 1, "", 1);
  SlabAllocator slabs;
  std::pair<uint64_t, uint64_t> used[] = {{kMiB, kMiB}, {0, 4096}};
  slabs.add_region(directory.put_region(9, 4 * kMiB, appliance, {}), used);
  CHECK(slabs.free_bytes() == 3 * kMiB - 4096);
  CHECK(slabs.allocate(appliance, 2 * kMiB)->offset == 2 * kMiB);
  CHECK(slabs.allocate(appliance, kMiB - 4096)->offset == 4096);
}

TEST_CASE("a record survives the round trip, and no flipped bit does") {
  Pool pool(2, 256 * kMiB);
  ExtentMap map;
  auto attributes = file(77);
  attributes.size = 100 * kMiB + 17;
  attributes.mtime_ns = 1234567890123456789;
  attributes.change = 42;
  REQUIRE(grow(map, attributes, {0, 101 * kMiB, false}, pool.slabs));
  auto record = encode_record(attributes, map);
  FileAttributes decoded;
  ExtentMap extents;
  REQUIRE(decode_record(record, pool.directory, decoded, extents));
  CHECK(decoded.size == attributes.size);
  CHECK(decoded.mtime_ns == attributes.mtime_ns);
  CHECK(decoded.change == 42);
  for (uint64_t at = 0; at < 101 * kMiB; at += 4096) {
    auto left = map.resolve(at, 1);
    auto right = extents.resolve(at, 1);
    REQUIRE((left.copies[0].region == right.copies[0].region && left.copies[0].offset == right.copies[0].offset));
  }
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    auto broken = record;
    broken[random() % broken.size()] ^= static_cast<uint8_t>(1u << random() % 8);
    CHECK_FALSE(decode_record(broken, pool.directory, decoded, extents));
  }
}

TEST_CASE("a byte of a mirror lies in every copy, and of raid10 in every copy of its column") {
  Pool pool(4, 64 * kMiB);
  auto region = [&](uint64_t id) { return pool.directory.find_region(id); };
  ExtentMap map;
  Member mirror[] = {{region(1), kMiB}, {region(2), 3 * kMiB}};
  map.insert(0, 4 * kMiB, one_column(4 * kMiB, 2), mirror);
  Member columns[] = {{region(1), 8 * kMiB}, {region(2), 8 * kMiB}, {region(3), 0}, {region(4), 16 * kMiB}};
  map.insert(4 * kMiB, 8 * kMiB, {2 * kMiB, 2}, columns);
  CHECK(map.extents()[0].kind() == LayoutKind::mirror);
  CHECK(map.extents()[1].kind() == LayoutKind::mirror);
  CHECK(map.allocated_bytes() == 24 * kMiB);

  auto piece = map.resolve(kMiB, 16 * kMiB);
  CHECK(piece.length == 3 * kMiB);
  REQUIRE(piece.copy_count == 2);
  CHECK((piece.copies[0].region->id == 1 && piece.copies[0].offset == 2 * kMiB));
  CHECK((piece.copies[1].region->id == 2 && piece.copies[1].offset == 4 * kMiB));

  piece = map.resolve(10 * kMiB + 4096, kMiB);  // fourth unit: the second of the second column
  CHECK(piece.length == kMiB);
  REQUIRE(piece.copy_count == 2);
  CHECK((piece.copies[0].region->id == 3 && piece.copies[0].offset == 2 * kMiB + 4096));
  CHECK((piece.copies[1].region->id == 4 && piece.copies[1].offset == 18 * kMiB + 4096));
}

TEST_CASE("of what is trimmed off, every copy goes back") {
  Pool pool(4, 64 * kMiB);
  auto region = [&](uint64_t id) { return pool.directory.find_region(id); };
  for (uint64_t kept : {uint64_t{0}, uint64_t{4096}, kMiB, 2 * kMiB + 4096, 4 * kMiB, 7 * kMiB}) {
    INFO("kept ", kept);
    ExtentMap map;
    Member members[] = {{region(1), 0}, {region(2), 0, true, false}, {region(3), 0}, {region(4), 0, false, true}};
    map.insert(0, 8 * kMiB, {kMiB, 2}, members);
    std::vector<Piece> before;
    for (uint64_t at = 0; at < kept; at += 4096) before.push_back(map.resolve(at, 4096));
    uint64_t freed = 0;
    for (const auto& piece : map.trim(kept)) freed += piece.bytes;
    CHECK(freed + 2 * kept == 16 * kMiB);
    CHECK(map.allocated_bytes() == 2 * kept);
    CHECK(map.end() == kept);
    for (uint64_t at = 0; at < kept; at += 4096) {
      auto now = map.resolve(at, 4096);
      REQUIRE(now.copy_count == 2);
      for (int copy = 0; copy < 2; ++copy) {
        const Member &is = now.copies[copy], &was = before[at / 4096].copies[copy];
        REQUIRE((is.region == was.region && is.offset == was.offset));
        REQUIRE((is.missing == was.missing && is.unsynced == was.unsynced));
      }
    }
  }
}

TEST_CASE("a record keeps the copies and what is known of them") {
  Pool pool(4, 64 * kMiB);
  auto region = [&](uint64_t id) { return pool.directory.find_region(id); };
  ExtentMap map;
  Member members[] = {{region(1), 4096}, {region(2), 0, true, false}, {region(3), 0}, {region(4), 8192, false, true}};
  map.insert(0, 8 * kMiB, {kMiB, 2}, members);
  auto attributes = file(5, LayoutKind::raid10);
  attributes.copies = 2;
  auto record = encode_record(attributes, map);
  FileAttributes decoded;
  ExtentMap extents;
  REQUIRE(decode_record(record, pool.directory, decoded, extents));
  CHECK(decoded.layout == LayoutKind::raid10);
  CHECK(decoded.copies == 2);
  REQUIRE(extents.extents().size() == 1);
  const auto read = extents.members(extents.extents()[0]);
  REQUIRE(read.size() == 4);
  for (size_t index = 0; index < 4; ++index) {
    CHECK((read[index].region == members[index].region && read[index].offset == members[index].offset));
    CHECK((read[index].missing == members[index].missing && read[index].unsynced == members[index].unsynced));
  }
}

/// Appliances named after where they are: "host/rack".
std::vector<fabric::Appliance*> appliances_at(fabric::Directory& directory, std::initializer_list<const char*> places) {
  std::vector<fabric::Appliance*> made;
  for (const std::string place : places) {
    const auto slash = place.find('/');
    made.push_back(&directory.put_appliance("appliance" + std::to_string(made.size()), place.substr(0, slash),
                                            "127.0.0.1", 1, "", 1, false, {}, place.substr(slash + 1)));
  }
  return made;
}

template <typename DomainOf>
bool are_apart(const std::vector<Column>& columns, DomainOf domain_of) {
  return std::ranges::all_of(columns, [&](const Column& column) {
    std::set<std::string> domains;
    for (auto* appliance : column) domains.insert(domain_of(*appliance));
    return domains.size() == column.size();
  });
}

TEST_CASE("copies lie as far apart as the appliances are, or as was asked") {
  auto rack = [](fabric::Appliance& appliance) { return appliance.rack; };
  auto host = [](fabric::Appliance& appliance) { return appliance.host_id; };
  fabric::Directory directory;
  auto racked = appliances_at(directory, {"h1/r1", "h2/r1", "h3/r2", "h4/r2", "h5/r1", "h6/r3"});
  auto columns = form_columns(racked, 2, Across::widest);
  CHECK(columns.size() == 3);
  CHECK(are_apart(columns, rack));
  CHECK(form_columns(racked, 3, Across::rack).size() == 1);
  CHECK(form_columns(racked, 4, Across::rack).empty());
  CHECK(form_columns(racked, 4, Across::host).size() == 1);

  fabric::Directory plain;
  auto hosts = appliances_at(plain, {"h1/", "h1/", "h1/", "h2/", "h3/"});
  columns = form_columns(hosts, 2, Across::widest);
  CHECK(columns.size() == 2);
  CHECK(are_apart(columns, host));
  CHECK(form_columns(hosts, 2, Across::rack).empty());  // nobody has said where they stand
  CHECK(form_columns(hosts, 2, Across::appliance).size() == 2);

  fabric::Directory single;
  auto one_host = appliances_at(single, {"h1/", "h1/"});
  CHECK(form_columns(one_host, 2, Across::widest).size() == 1);
  CHECK(form_columns(one_host, 2, Across::host).empty());
  CHECK(form_columns(one_host, 3, Across::widest).empty());
}

TEST_CASE("a mirrored file grows on pairs, all or none; raid10 over all of them") {
  for (LayoutKind layout : {LayoutKind::mirror, LayoutKind::raid10}) {
    Pool pool(4, 64 * kMiB);
    const uint64_t all = pool.slabs.free_bytes();
    auto attributes = file(3, layout);
    attributes.copies = 2;
    ExtentMap map;
    for (uint64_t at = 0; at < 32 * kMiB; at += kMiB)
      REQUIRE(grow(map, attributes, {at, at + kMiB, false}, pool.slabs));
    CHECK(all - pool.slabs.free_bytes() == map.allocated_bytes());
    std::set<uint64_t> regions;
    for (uint64_t at = 0; at < 32 * kMiB; at += 4096) {
      auto piece = map.resolve(at, 4096);
      REQUIRE(piece.copy_count == 2);
      REQUIRE(piece.copies[0].region != piece.copies[1].region);
      for (const Member& copy : piece.all()) regions.insert(copy.region->id);
    }
    CHECK(regions.size() == (layout == LayoutKind::mirror ? 2 : 4));
    CHECK(map.extents().size() < 32);
    const uint64_t before = pool.slabs.free_bytes();
    CHECK_FALSE(grow(map, attributes, {32 * kMiB, 512 * kMiB, true}, pool.slabs));
    CHECK(pool.slabs.free_bytes() == before);
  }
}

TEST_CASE("where there is one appliance for two copies, nothing is carved") {
  Pool pool(1, 64 * kMiB);
  const uint64_t all = pool.slabs.free_bytes();
  auto attributes = file(3, LayoutKind::mirror);
  attributes.copies = 2;
  ExtentMap map;
  CHECK_FALSE(grow(map, attributes, {0, 4096, true}, pool.slabs));
  CHECK(pool.slabs.free_bytes() == all);
}

TEST_CASE("of what has copies, a record says lost ones missing, and one may be in a region that is not known") {
  Pool pool(2, 64 * kMiB);
  ExtentMap map;
  Member members[] = {{pool.directory.find_region(1), 0}, {pool.directory.find_region(2), 0}};
  map.insert(0, kMiB, one_column(kMiB, 2), members);
  pool.directory.lose_region(1);
  FileAttributes decoded;
  ExtentMap extents;
  REQUIRE(decode_record(encode_record(file(1), map), pool.directory, decoded, extents));
  CHECK(extents.resolve(0, 1).copies[0].missing);
  CHECK_FALSE(extents.resolve(0, 1).copies[1].missing);
  fabric::Directory other;
  auto& appliance = other.put_appliance("a", "", "127.0.0.1", 1, "", 1);
  other.put_region(2, 64 * kMiB, appliance, {});
  REQUIRE(decode_record(encode_record(file(1), map), other, decoded, extents));
  CHECK(extents.resolve(0, 1).copies[0].region->id == 1);
  pool.directory.lose_region(2);
  REQUIRE(decode_record(encode_record(file(1), map), pool.directory, decoded, extents));
  CHECK_FALSE(extents.resolve(0, 1).copies[1].missing);  // then it says nothing: whoever has it may know better
}

}  // namespace
}  // namespace extmem::extent
