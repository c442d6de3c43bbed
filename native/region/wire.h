// What a connection of the appliance is served over: a stream of bytes, and what comes with it. A socket (tcp or unix)
// here; verbs/ has another. Used under its connection's lock.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/socket.h"

namespace extmem::region {

/// A chunk of a region's memory that a client may reach by itself.
class LentChunk {
 public:
  virtual ~LentChunk() = default;
  virtual uint32_t key() const = 0;
  /// By which the client tells that it has written there; 0: it cannot.
  virtual uint32_t notice() const = 0;
  /// When it returns, the client reaches the memory by it no more. Any thread.
  virtual void end() = 0;
};

/// Told that a chunk was ended by its region, so that the client need not find out by failing. Any thread.
class Borrower {
 public:
  virtual void note_ended(uint64_t region, uint64_t number) = 0;

 protected:
  ~Borrower() = default;
};

/// What is told that memory was written by those who reach it by themselves. Any thread, lock-free.
class Written {
 public:
  virtual void mark_written(uint64_t offset, uint64_t bytes) = 0;

 protected:
  ~Written() = default;
};

class Lender {
 public:
  struct Piece {
    std::span<std::byte> memory;  ///< may be unmapped afterwards
    uint64_t offset;              ///< the memory's, in its region
    bool writable;
    std::weak_ptr<Written> region;  ///< told of notices, and when a chunk ends that could be written without
  };
  /// Null: impossible.
  virtual std::shared_ptr<LentChunk> lend(const Piece& piece) = 0;

 protected:
  ~Lender() = default;
};

class Wire {
 public:
  virtual ~Wire() = default;
  /// Ready when there may be something to receive, or the end.
  virtual int fd() const = 0;
  /// Whether fd() is ready for output when there is room for some; otherwise it is ready for input then.
  virtual bool tells_output() const = 0;
  // Like recv(2) and send(2) without waiting, errno included.
  virtual ssize_t receive(std::span<uint8_t> into) = 0;
  virtual ssize_t send(std::span<const uint8_t> data, bool more_follows) = 0;
  /// Whether what was sent arrives although the connection is closed now.
  virtual bool drained() = 0;
  /// When it returns, nothing that the peer sends or does over it takes effect; fd() is ready. Tells the peer why, with
  /// these last bytes, if it can.
  virtual void cut(std::span<const uint8_t> last_words) = 0;
  virtual std::string describe_peer() const = 0;
  /// The address of ours that the peer has come to; empty: it has come by no network.
  virtual std::string local_address() const = 0;
  /// For sendfile(2) and descriptors; -1: there is none.
  virtual int socket() const = 0;
  /// Who serves it would not learn that the peer has vanished: to be called now and then, and ends the wire then.
  virtual void probe() {}
  /// Null: it has no one-sided access.
  virtual Lender* lender() { return nullptr; }
};

class SocketWire final : public Wire {
 public:
  explicit SocketWire(UniqueFd fd) : fd_(std::move(fd)) {}
  int fd() const override { return fd_.get(); }
  bool tells_output() const override { return true; }
  ssize_t receive(std::span<uint8_t> into) override;
  ssize_t send(std::span<const uint8_t> data, bool more_follows) override;
  bool drained() override { return true; }
  void cut(std::span<const uint8_t> last_words) override;
  std::string describe_peer() const override { return extmem::describe_peer(fd_.get()); }
  std::string local_address() const override { return extmem::describe_local(fd_.get()); }
  int socket() const override { return fd_.get(); }

 private:
  UniqueFd fd_;
};

/// Where connections come from. One serving thread's.
class Acceptor {
 public:
  virtual ~Acceptor() = default;
  virtual int fd() const = 0;
  /// The next; null with an errno: EAGAIN when there is none.
  virtual std::unique_ptr<Wire> accept() = 0;
};

class SocketAcceptor final : public Acceptor {
 public:
  SocketAcceptor(UniqueFd fd, bool tcp) : fd_(std::move(fd)), tcp_(tcp) {}
  int fd() const override { return fd_.get(); }
  std::unique_ptr<Wire> accept() override;

 private:
  UniqueFd fd_;
  const bool tcp_;
};

}  // namespace extmem::region
