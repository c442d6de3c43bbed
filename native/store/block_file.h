// What the store lies on: a file, or a block device. The only door to it, so that tests can put a device there that
// forgets, tears and reorders what was not synchronised (crash_test.cc).
//
// One thread at a time writes; reads come from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "store/verdict.h"

namespace extmem::store {

class BlockFile {
 public:
  virtual ~BlockFile() = default;
  /// Bytes beyond the end read as zeros.
  virtual Verdict read(uint64_t offset, std::span<uint8_t> into) = 0;
  virtual Verdict write(uint64_t offset, std::span<const uint8_t> data) = 0;
  /// When it returns, everything written before survives a loss of power.
  virtual Verdict sync() = 0;
  /// Starts the way to the device of what was written there; a hint.
  virtual void start_writing([[maybe_unused]] uint64_t offset, [[maybe_unused]] uint64_t bytes) {}
  /// It will be read soon; a hint.
  virtual void start_reading([[maybe_unused]] uint64_t offset, [[maybe_unused]] uint64_t bytes) {}
  /// The bytes are not needed any more; a hint. What is read there afterwards is anything.
  virtual void discard([[maybe_unused]] uint64_t offset, [[maybe_unused]] uint64_t bytes) {}
  /// Takes room up to there, so that writes below do not fail for want of it.
  virtual Verdict reserve(uint64_t bytes) = 0;
  /// How large it is now.
  virtual uint64_t bytes() const = 0;
  /// Whether reserve() can make it larger.
  virtual bool grows() const = 0;
};

/// Opens a file (made if it is not there), a directory (a file `extmem.store` in it), or a block device, for this
/// process alone.
std::unique_ptr<BlockFile> open_block_file(const std::string& path, Verdict& verdict);

}  // namespace extmem::store
