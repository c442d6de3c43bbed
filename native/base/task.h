// Coroutines of the data path. Task<T> is awaited by exactly one parent and starts when it is awaited;
// Detached starts at once and frees itself. Frames come from a per-thread pool, so that in the steady state
// a suspended request costs no malloc. A coroutine always resumes on the reactor that started it.
#pragma once

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <new>
#include <optional>
#include <utility>

#include "base/assert.h"

namespace extmem {

/// Size-classed free lists of coroutine frames, one pool per thread. A frame freed on another thread joins that
/// thread's pool.
class FramePool {
 public:
  static void* allocate(size_t bytes) {
    size_t index = class_of(bytes);
    if (index >= kClasses) return ::operator new(bytes);
    Node*& head = lists()[index].head;
    if (head == nullptr) return ::operator new((index + 1) * kStepBytes);
    Node* node = head;
    head = node->next;
    return node;
  }
  static void release(void* frame, size_t bytes) {
    size_t index = class_of(bytes);
    if (index >= kClasses) return ::operator delete(frame);
    auto* node = static_cast<Node*>(frame);
    node->next = lists()[index].head;
    lists()[index].head = node;
  }

 private:
  struct Node {
    Node* next;
  };
  struct List {
    Node* head = nullptr;
    ~List() {
      while (head != nullptr) ::operator delete(std::exchange(head, head->next));
    }
  };
  static constexpr size_t kStepBytes = 256;
  static constexpr size_t kClasses = 64;
  static size_t class_of(size_t bytes) { return (bytes - 1) / kStepBytes; }
  static std::array<List, kClasses>& lists() {
    thread_local std::array<List, kClasses> lists;
    return lists;
  }
};

struct PooledFrame {
  static void* operator new(size_t bytes) { return FramePool::allocate(bytes); }
  static void operator delete(void* frame, size_t bytes) { FramePool::release(frame, bytes); }
  [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
};

template <typename T>
class [[nodiscard]] Task {
 public:
  struct promise_type : PooledFrame {
    std::coroutine_handle<> parent;
    std::optional<T> value;
    Task get_return_object() { return Task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    auto final_suspend() noexcept { return Resume{}; }
    void return_value(T result) { value.emplace(std::move(result)); }
  };
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> parent) noexcept {
    handle_.promise().parent = parent;
    return handle_;
  }
  T await_resume() { return std::move(*handle_.promise().value); }

 private:
  struct Resume {
    bool await_ready() noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) noexcept {
      return self.promise().parent;
    }
    void await_resume() noexcept {}
  };
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

/// Runs on its own from its first line; nobody awaits it.
struct Detached {
  struct promise_type : PooledFrame {
    Detached get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
  };
};

}  // namespace extmem
