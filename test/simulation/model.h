// What each file may hold, by the rules of coherence.md. Files are made of cells; each write stamps its cells with a
// version of its own, so that whatever is read says which write it is of. The unit of crashes is the page: after one, a
// page is as some moment since its last fsync left it.
//
// The model sees what no client can: who has really been given a file, and when it was really taken away.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace extmem::simulation {

inline constexpr uint32_t kPageBytes = 4096;
inline constexpr uint32_t kCellBytes = 512;
inline constexpr uint32_t kPageCells = kPageBytes / kCellBytes;

using ClientId = uint64_t;
using FileId = uint64_t;
/// 0: zeros.
using Version = uint64_t;
using PageContent = std::array<Version, kPageCells>;

/// Cells [first, first + count) of a file.
struct CellRange {
  uint32_t first;
  uint32_t count;
};

/// Fills cells with their version, so that no two cells of all files hold the same bytes.
void stamp(FileId file, CellRange cells, Version version, std::span<std::byte> into);
/// The version of a cell; false: these bytes are no cell of that file and place.
bool read_stamp(FileId file, uint32_t cell, std::span<const std::byte> bytes, Version& version);

class Model {
 public:
  explicit Model(uint32_t file_pages) : file_pages_(file_pages) {}

  // What clients do, each one thing at a time with a file.
  void begin_write(ClientId client, FileId file, CellRange cells, Version version);
  void end_write(ClientId client, FileId file, CellRange cells, Version version, bool done);
  /// Empty, or what is wrong with having read that.
  std::string check_read(ClientId client, FileId file, CellRange cells, std::span<const std::byte> data);
  /// fsync has answered that all is well.
  std::string check_synced(ClientId client, FileId file);

  // What happens to them.
  /// Given for writing or reading.
  void grant(ClientId client, FileId file);
  /// Given back, everything flushed.
  void hand_back(ClientId client, FileId file);
  /// Taken away: nothing it does reaches the file any more.
  void depose(ClientId client, FileId file);
  /// The client's memory is gone.
  void crash(ClientId client);
  /// Some of the file's memory is gone: reads may fail, for ever.
  void taint(FileId file) { tainted_.insert(file); }
  bool is_tainted(FileId file) const { return tainted_.contains(file); }

 private:
  struct Page {
    std::vector<PageContent> now{{}};      ///< what it may hold, for who holds the file
    std::vector<PageContent> durable{{}};  ///< what it may be if the holder's memory goes
    bool anything = false;                 ///< too much is possible to keep track of
  };
  struct File {
    std::vector<Page> pages;
    std::map<ClientId, bool> holders;  ///< whether it has written since it was given the file
  };
  /// What a deposed client may believe of a file until it knows.
  struct Belief {
    std::vector<Page> pages;
    bool wrote = false;
  };

  File& file(FileId id);
  std::vector<Page>& view(ClientId client, FileId id);
  static void overlay(std::vector<PageContent>& contents, const PageContent& cells, bool keep_old);

  /// Beyond so many possibilities a page may hold any write of its own.
  static constexpr size_t kMostContents = 64;

  const uint32_t file_pages_;
  std::map<FileId, File> files_;
  std::map<std::pair<ClientId, FileId>, Belief> beliefs_;
  std::set<FileId> tainted_;
};

}  // namespace extmem::simulation
