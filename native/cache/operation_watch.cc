#include "cache/operation_watch.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/protocol.h"

namespace extmem::cache {

namespace {

/// Places where a file may stand in a table, from its own on.
constexpr uint32_t kProbes = 16;

}  // namespace

void FileOperations::use(uint64_t offset) {
  const uint64_t chunk = offset / protocol::kStripeUnitBytes;
  Hot* least = &hot[0];
  for (Hot& one : hot) {
    if (one.operations > 0 && one.chunk == chunk) {
      ++one.operations;
      return;
    }
    if (one.operations < least->operations) least = &one;
  }
  *least = {chunk, least->operations + 1};
}

void FileOperations::add(const FileOperations& other) {
  reads += other.reads;
  read_bytes += other.read_bytes;
  hits += other.hits;
  writes += other.writes;
  written_bytes += other.written_bytes;
  mapped_writes += other.mapped_writes;
  for (const Hot& more : other.hot) {
    if (more.operations == 0) continue;
    const auto same = [&](const Hot& one) { return one.operations > 0 && one.chunk == more.chunk; };
    auto place = std::find_if(hot.begin(), hot.end(), same);
    if (place != hot.end()) {
      place->operations += more.operations;
      continue;
    }
    place =
        std::min_element(hot.begin(), hot.end(), [](auto& one, auto& two) { return one.operations < two.operations; });
    *place = {more.chunk, place->operations + more.operations};
  }
}

void OperationWatch::begin() {
  if (!kept_) kept_ = std::make_unique<Table>();
  std::vector<FileOperations> former;
  take(former);  // of an earlier watch
  table_.store(kept_.get(), std::memory_order_release);
}

uint64_t OperationWatch::take(std::vector<FileOperations>& into) {
  if (!kept_) return 0;
  // Room first: nothing is allocated while a reactor may wait.
  std::vector<FileOperations> noted;
  noted.reserve(kFiles);
  uint64_t others = 0;
  {
    std::lock_guard guard(kept_->lock);
    for (FileOperations& file : kept_->files) {
      if (file.node == 0) continue;
      noted.push_back(file);
      file = {};
    }
    others = std::exchange(kept_->others, 0);
  }
  for (const FileOperations& file : noted) {
    auto known = std::find_if(into.begin(), into.end(), [&](auto& one) { return one.node == file.node; });
    if (known == into.end())
      into.push_back(file);
    else
      known->add(file);
  }
  return others;
}

FileOperations* OperationWatch::Table::find(uint64_t node) {
  const uint64_t home = node * 0x9e3779b97f4a7c15 >> 32;
  for (uint32_t probe = 0; probe < kProbes; ++probe) {
    FileOperations& file = files[(home + probe) % kFiles];
    if (file.node == node) return &file;
    if (file.node != 0) continue;
    file.node = node;
    return &file;
  }
  ++others;
  return nullptr;
}

void OperationWatch::note_read(uint64_t node, uint64_t offset, uint32_t bytes, bool hit) {
  Table* table = table_.load(std::memory_order_acquire);
  if (table == nullptr) return;
  std::lock_guard guard(table->lock);
  FileOperations* file = table->find(node);
  if (file == nullptr) return;
  ++file->reads;
  file->read_bytes += bytes;
  file->hits += hit ? 1 : 0;
  file->use(offset);
}

void OperationWatch::note_write(uint64_t node, uint64_t offset, uint32_t bytes, bool mapped) {
  Table* table = table_.load(std::memory_order_acquire);
  if (table == nullptr) return;
  std::lock_guard guard(table->lock);
  FileOperations* file = table->find(node);
  if (file == nullptr) return;
  ++file->writes;
  file->written_bytes += bytes;
  file->mapped_writes += mapped ? 1 : 0;
  file->use(offset);
}

}  // namespace extmem::cache
