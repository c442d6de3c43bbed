// ② What the control plane and the calls that promise durability do with a file: install, record, fsync, cut.
#pragma once

#include <span>

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Makes the file known, or gives it a new mode and record (empty: the one that it has, whatever is being written
/// meanwhile). Cached pages go when the record is another's (a newer change counter). 0, or EINVAL when the record is
/// not sound, names unknown regions, or there is none.
int install_file(PageCache& cache, uint64_t node, Delegation mode, std::span<const uint8_t> record);

/// The lock is held.
void set_record_locked(File& file, const extent::FileAttributes& attributes, extent::ExtentMap extents);

std::vector<uint8_t> record_of(File& file);
/// The lock is held. Whoever gets it may have the pieces that it names until a newer one is with the manager.
std::vector<uint8_t> encode_record_locked(File& file);

/// The manager's record says which copies count; all else that is newer here stays.
void adopt_marks(PageCache& cache, File& file, std::span<const uint8_t> record);

/// fsync, and close after writes: data at the appliances, the record beside the first piece and with the manager; with
/// the manager dead (ENOTCONN) the one beside every copy of the piece must do. 0 or EIO. owner: lock owner at close.
Task<int> sync_file(PageCache& cache, Lane& lane, File& file, bool closing, uint64_t owner);

/// Before the manager frees a range: the file's writers finish, nobody becomes one, and nothing in the range is filled
/// or flushed until end_cut. The record taken in between is the one that counts.
Task<int> begin_cut(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t end);

/// The manager's new record (empty: the cut did not happen); a truncation sets the size. Partial pages at the edges are
/// zeroed here, unless the manager has done that (edges_zeroed).
Task<int> end_cut(PageCache& cache, Lane& lane, File& file, std::span<const uint8_t> record, bool edges_zeroed);

inline constexpr uint64_t kMaxFileBytes = uint64_t{UINT32_MAX} * kPageBytes;

/// What an application writes may make the file longer. A page that a mapping dirtied and that the kernel writes back
/// never does: what lies beyond the end was cut off meanwhile, here or by another mount.
enum class Origin : uint8_t { application, mapping };

struct Write {
  uint64_t offset;
  std::span<const std::byte> data;
  Origin origin = Origin::application;
  bool appends = false;            ///< O_APPEND: goes where the end is then; `offset` becomes that
  bool holds_pages = false;        ///< the kernel may hold pages locked until this is answered
  bool drops_privileges = false;   ///< whoever writes may not leave it set-user-ID or set-group-ID (inode(7))
  const Handle* handle = nullptr;  ///< that it goes by, if any: one that was broken writes no more
  bool told = false;               ///< the answer: others may have been told of an append. It is not to be made again
};

/// As the file's mode is: into the cache, or through to the appliances. 0 or an errno.
Task<int> write_file(PageCache& cache, Lane& lane, File& file, Write& write);

/// Room for a range, without writing (fallocate). keep_size as FALLOC_FL_KEEP_SIZE. 0 or an errno.
Task<int> allocate_range(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t bytes, bool keep_size);

}  // namespace extmem::cache
