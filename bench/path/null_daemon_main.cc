// The null daemon: native/fuse as the mount has it, and nothing below. One file, FOLDER/null, of BYTES bytes; a read is
// answered from one frame of zeros, a write is thrown away. What it costs is what FUSE costs, by these sessions and on
// this machine; the rest of a fault of ours is ours.
//
// The handlers at the end take the place of those of native/fuse/data_path.cc, which the linker then does not pull in.
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "fuse/mount_point.h"
#include "fuse/opcode_table.h"
#include "fuse/session.h"

namespace extmem::fuse {

namespace {

constexpr uint64_t kRoot = FUSE_ROOT_ID;
constexpr uint64_t kFile = 2;
constexpr uint64_t kForeverS = 1u << 30;
constexpr const char* kName = "null";

/// The data path asks for nothing: there is none.
class NoControlPlane final : public extent::ControlPlane {
 public:
  void ask(extent::ControlCall& call) override { call.answered(); }
};

/// Answers the control path where it stands: one folder with one file.
class OneFile final : public ControlSink {
 public:
  explicit OneFile(uint64_t bytes) : bytes_(bytes) {}
  void serve(Session& session) { session_ = &session; }

  void control_request(ControlRequest request) override {
    switch (request.opcode) {
      case FUSE_LOOKUP: {
        if (std::strcmp(reinterpret_cast<const char*>(request.body.data()), kName) != 0) return refuse(request, ENOENT);
        fuse_entry_out out{};
        out.nodeid = kFile;
        out.entry_valid = out.attr_valid = kForeverS;
        out.attr = attributes(kFile);
        return answer(request, out);
      }
      case FUSE_GETATTR:
      case FUSE_SETATTR: {
        fuse_attr_out out{};
        out.attr_valid = kForeverS;
        out.attr = attributes(request.node);
        return answer(request, out);
      }
      case FUSE_OPEN:
        return answer(request, fuse_open_out{});
      case FUSE_STATFS:
        return answer(request, fuse_statfs_out{});
      case FUSE_RELEASE:
        return refuse(request, 0);
      default:
        return refuse(request, ENOSYS);
    }
  }
  void interrupted(uint64_t) override {}
  void forgotten(std::vector<std::pair<uint64_t, uint64_t>>) override {}
  void session_ended(int) override { kill(getpid(), SIGTERM); }

 private:
  fuse_attr attributes(uint64_t node) const {
    fuse_attr attr{};
    attr.ino = node;
    attr.size = node == kFile ? bytes_ : 0;
    attr.blocks = attr.size / 512;
    attr.mode = node == kRoot ? S_IFDIR | 0755 : S_IFREG | 0644;
    attr.nlink = 1;
    attr.blksize = cache::kPageBytes;
    return attr;
  }
  template <typename Body>
  void answer(const ControlRequest& request, const Body& body) {
    session_->reply(request.id, 0, {reinterpret_cast<const uint8_t*>(&body), sizeof body});
  }
  void refuse(const ControlRequest& request, int error) { session_->reply(request.id, error, {}); }

  const uint64_t bytes_;
  Session* session_ = nullptr;
};

int serve(const std::string& folder, uint64_t bytes, UringUse uring) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  NoControlPlane nothing;
  OneFile file(bytes);
  Session::Options options{.mount_point = folder, .uring = uring, .cache = {.cache_bytes = 1 << 20}, .fabric = {}};
  Session session(options, nothing, file);
  file.serve(session);
  MountResult mounted = session.start();
  if (mounted.fd < 0) {
    std::fprintf(stderr, "null daemon: %s: %s\n", mounted.code.c_str(), mounted.message.c_str());
    return 1;
  }
  std::printf("%s\n", session.kind());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&ends, &signal);
  unmount_fuse(folder, true);
  session.stop();
  return 0;
}

}  // namespace

void handle_read(Worker& worker, Request& request) {
  static const std::byte frame[kMaxWriteBytes] = {};
  worker.reply(request.ticket, frame, std::min<size_t>(request.as<fuse_read_in>().size, sizeof frame));
}

void handle_write(Worker& worker, Request& request) {
  fuse_write_out out{request.as<fuse_write_in>().size, 0};
  worker.reply(request.ticket, &out, sizeof out);
}

void handle_flush(Worker& worker, Request& request) { worker.reply_error(request.ticket, 0); }
void handle_fsync(Worker& worker, Request& request) { worker.reply_error(request.ticket, 0); }
void handle_fallocate(Worker& worker, Request& request) { worker.reply_error(request.ticket, 0); }
void handle_lseek(Worker& worker, Request& request) { worker.reply_error(request.ticket, ENOSYS); }
void handle_getxattr(Worker& worker, Request& request) { worker.reply_error(request.ticket, ENODATA); }

}  // namespace extmem::fuse

int main(int count, char** arguments) {
  using extmem::fuse::UringUse;
  const std::string uring = count == 4 ? arguments[3] : "";
  if (uring != "on" && uring != "off" && uring != "auto") {
    std::fprintf(stderr, "usage: null_daemon FOLDER BYTES on|off|auto   (the last: FUSE over io_uring)\n");
    return 2;
  }
  const UringUse use = uring == "on" ? UringUse::always : uring == "off" ? UringUse::never : UringUse::automatic;
  return extmem::fuse::serve(arguments[1], std::strtoull(arguments[2], nullptr, 10), use);
}
