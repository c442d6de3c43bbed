// A thread that does one job after the other, in the order in which they came. At its end what was begun or waits is
// done.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace extmem::binding {

class JobThread {
 public:
  JobThread() : thread_([this] { work(); }) {}
  ~JobThread() {
    {
      std::lock_guard guard(lock_);
      ending_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  JobThread(const JobThread&) = delete;

  void run(std::function<void()> job) {
    {
      std::lock_guard guard(lock_);
      jobs_.push_back(std::move(job));
    }
    changed_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> job;
      {
        std::unique_lock guard(lock_);
        changed_.wait(guard, [this] { return ending_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace extmem::binding
