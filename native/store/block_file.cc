#include "store/block_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/socket.h"

namespace extmem::store {

namespace {

Verdict failure(const std::string& what, const std::string& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return {full ? Code::no_space : Code::io_error, what + " " + path + ": " + std::strerror(error)};
}

class File final : public BlockFile {
 public:
  File(UniqueFd fd, std::string path, bool is_device, uint64_t bytes)
      : fd_(std::move(fd)), path_(std::move(path)), is_device_(is_device), bytes_(bytes) {}

  Verdict read(uint64_t offset, std::span<uint8_t> into) override {
    while (!into.empty()) {
      const ssize_t got = pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return failure("reading the store", path_, errno);
      if (got == 0) std::fill(into.begin(), into.end(), 0);
      const size_t done = got == 0 ? into.size() : static_cast<size_t>(got);
      into = into.subspan(done);
      offset += done;
    }
    return {};
  }

  Verdict write(uint64_t offset, std::span<const uint8_t> data) override {
    while (!data.empty()) {
      const ssize_t put = pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return failure("writing the store", path_, put == 0 ? EIO : errno);
      data = data.subspan(static_cast<size_t>(put));
      offset += static_cast<uint64_t>(put);
    }
    return {};
  }

  /// Whatever the reason: the kernel may have dropped what it could not write and will not say so twice.
  Verdict sync() override {
    if (fdatasync(fd_.get()) == 0) return {};
    return {Code::io_error, failure("synchronising the store", path_, errno).why};
  }

  void start_writing(uint64_t offset, uint64_t bytes) override {
    sync_file_range(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
  }

  void start_reading(uint64_t offset, uint64_t bytes) override {
    posix_fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
  }

  void discard(uint64_t offset, uint64_t bytes) override {
    fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(bytes));
  }

  Verdict reserve(uint64_t bytes) override {
    const uint64_t now = bytes_.load();
    if (bytes <= now) return {};
    if (is_device_) return {Code::no_space, "the store's device " + path_ + " is full"};
    int error = fallocate(fd_.get(), 0, static_cast<off_t>(now), static_cast<off_t>(bytes - now)) == 0 ? 0 : errno;
    // Some file systems cannot promise room.
    if (error == EOPNOTSUPP) error = ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0 ? 0 : errno;
    if (error != 0) return failure("taking room for the store", path_, error);
    bytes_.store(bytes);
    return {};
  }

  uint64_t bytes() const override { return bytes_.load(); }
  bool grows() const override { return !is_device_; }

 private:
  const UniqueFd fd_;
  const std::string path_;
  const bool is_device_;
  std::atomic<uint64_t> bytes_;
};

}  // namespace

std::unique_ptr<BlockFile> open_block_file(const std::string& asked, Verdict& verdict) {
  std::string path = asked;
  struct stat found {};
  if (stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode)) path += "/extmem.store";
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd || fstat(fd.get(), &found) != 0) {
    verdict = failure("opening the store", path, errno);
    return nullptr;
  }
  if (!S_ISREG(found.st_mode) && !S_ISBLK(found.st_mode)) {
    verdict = {Code::not_a_store, path + " is neither a file, nor a directory, nor a block device"};
    return nullptr;
  }
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    verdict = {Code::in_use, "the store " + path + " is in use by another appliance"};
    return nullptr;
  }
  auto bytes = static_cast<uint64_t>(found.st_size);
  if (S_ISBLK(found.st_mode) && ioctl(fd.get(), BLKGETSIZE64, &bytes) != 0) {
    verdict = failure("measuring the store", path, errno);
    return nullptr;
  }
  verdict = {};
  return std::make_unique<File>(std::move(fd), path, S_ISBLK(found.st_mode), bytes);
}

}  // namespace extmem::store
