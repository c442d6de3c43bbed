// A device in memory for tests: it remembers every write and every barrier, so that a test can go back to what a loss
// of power at any moment may have left, and it fails when it is told to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "store/block_file.h"

namespace extmem::store {

class Device final : public BlockFile {
 public:
  static constexpr uint64_t kSector = 512;
  struct Operation {
    bool is_sync;
    uint64_t offset;
    std::vector<uint8_t> data;
  };
  enum class Left : uint8_t { nothing, everything, all_but_last, scraps };

  explicit Device(uint64_t limit, std::vector<uint8_t> image = {}) : limit_(limit), image_(std::move(image)) {}

  Verdict read(uint64_t offset, std::span<uint8_t> into) override {
    std::fill(into.begin(), into.end(), 0);
    if (offset < image_.size())
      std::memcpy(into.data(), image_.data() + offset, std::min<uint64_t>(into.size(), image_.size() - offset));
    return {};
  }
  Verdict write(uint64_t offset, std::span<const uint8_t> data) override {
    if (fails_writes_after > 0 && --fails_writes_after == 0) fails = true;
    if (fails) return {Code::io_error, "the device fails"};
    if (offset + data.size() > image_.size()) return {Code::no_space, "beyond the end"};
    std::memcpy(image_.data() + offset, data.data(), data.size());
    if (records) operations.push_back({false, offset, {data.begin(), data.end()}});
    return {};
  }
  Verdict sync() override {
    if (fails) return {Code::io_error, "the device fails"};
    if (records) operations.push_back({true, 0, {}});
    return {};
  }
  Verdict reserve(uint64_t bytes) override {
    if (bytes > limit_) return {Code::no_space, "the device is full"};
    if (bytes > image_.size()) image_.resize(bytes);
    return {};
  }
  uint64_t bytes() const override { return image_.size(); }
  bool grows() const override { return true; }

  /// What a loss of power may leave when the first `count` operations had been given to the device: what was written
  /// before the last barrier, and of the rest some.
  std::vector<uint8_t> after_crash(size_t count, Left left, std::mt19937_64& random) const {
    std::vector<uint8_t> image(image_.size());
    size_t barrier = 0;
    for (size_t index = 0; index < count; ++index) {
      if (operations[index].is_sync) barrier = index;
    }
    for (size_t index = 0; index < barrier; ++index) apply(image, operations[index], 0, UINT64_MAX);
    std::vector<size_t> rest;
    for (size_t index = barrier; index < count; ++index) rest.push_back(index);
    if (left == Left::nothing) return image;
    if (left == Left::scraps) std::shuffle(rest.begin(), rest.end(), random);
    for (size_t at = 0; at < rest.size(); ++at) {
      const Operation& operation = operations[rest[at]];
      if (left == Left::all_but_last && at + 1 == rest.size()) break;
      if (left != Left::scraps) {
        apply(image, operation, 0, UINT64_MAX);
        continue;
      }
      if (random() % 3 == 0) continue;  // lost
      for (uint64_t sector = 0; sector < operation.data.size(); sector += kSector) {
        if (random() % 4 != 0) apply(image, operation, sector, sector + kSector);
      }
    }
    return image;
  }

  std::vector<uint8_t>& image() { return image_; }

  std::vector<Operation> operations;
  bool records = true;
  bool fails = false;
  int fails_writes_after = 0;

 private:
  static void apply(std::vector<uint8_t>& image, const Operation& operation, uint64_t begin, uint64_t end) {
    end = std::min<uint64_t>(end, operation.data.size());
    if (begin < end) std::memcpy(image.data() + operation.offset + begin, operation.data.data() + begin, end - begin);
  }

  const uint64_t limit_;
  std::vector<uint8_t> image_;
};

/// For when the store owns its file and the test goes on looking at it.
class OnDevice final : public BlockFile {
 public:
  explicit OnDevice(Device& file) : file_(file) {}
  Verdict read(uint64_t offset, std::span<uint8_t> into) override { return file_.read(offset, into); }
  Verdict write(uint64_t offset, std::span<const uint8_t> data) override { return file_.write(offset, data); }
  Verdict sync() override { return file_.sync(); }
  Verdict reserve(uint64_t bytes) override { return file_.reserve(bytes); }
  uint64_t bytes() const override { return file_.bytes(); }
  bool grows() const override { return file_.grows(); }

 private:
  Device& file_;
};

}  // namespace extmem::store
