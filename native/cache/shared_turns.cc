#include "cache/shared_turns.h"

#include <errno.h>

namespace extmem::cache {

namespace {
/// The file is being handed over to the manager just now.
constexpr uint64_t kAskAgainNs = 1'000'000;
}  // namespace

void grow_shared_size(File& file, uint64_t size) {
  file.lock.lock();
  if (file.mode.load() == Delegation::shared && size > file.size.load()) file.size.store(size);
  file.lock.unlock();
}

Task<int> pause_writers(Lane& lane, File& file) {
  file.lock.lock();
  file.paused = true;
  file.lock.unlock();
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file.lock.lock();
    bool busy = file.paused && (file.active_writers.load() > 0 || file.writing_pages > 0);
    if (busy) file.enlist(waiter);
    file.lock.unlock();
    if (!busy) co_return 0;
    co_await waiter;
  }
}

void resume_writers(File& file) {
  file.lock.lock();
  file.paused = file.refused = false;
  file.wake(0, UINT32_MAX);
  file.lock.unlock();
}

void refuse_writers(File& file) {
  file.lock.lock();
  file.refused = true;
  file.wake(0, UINT32_MAX);
  file.lock.unlock();
}

Task<int> reads_settled(Lane& lane, File& file) {
  bool turned = false;
  uint8_t before = 0;
  uint32_t turn = 0;
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file.lock.lock();
    if (!turned && file.reads_in_flight[file.read_phase ^ 1] == 0) {
      before = file.read_phase;
      file.read_phase ^= 1;
      turned = true;
      turn = ++file.read_turns;
    }
    // Another's turn after ours began when nothing was in flight from before ours.
    bool busy = !turned || (file.reads_in_flight[before] > 0 && file.read_turns == turn);
    if (busy) file.enlist(waiter);
    file.lock.unlock();
    if (!busy) co_return 0;
    co_await waiter;
  }
}

Task<int> yield_end(Lane& lane, File& file) {
  file.lock.lock();
  ++file.end.wanted;
  file.lock.unlock();
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file.lock.lock();
    bool busy = file.end.in_use;
    if (busy) {
      file.enlist(waiter);
    } else {
      file.end.ours = false;
      --file.end.wanted;
      file.wake(0, UINT32_MAX);
    }
    file.lock.unlock();
    if (!busy) co_return 0;
    co_await waiter;
  }
}

bool AtEnd::claimed() const {
  file_.lock.lock();
  bool claimed = claimed_ && file_.end.ours;
  file_.lock.unlock();
  return claimed;
}

AtEnd::~AtEnd() {
  if (!claimed_) return;
  file_.lock.lock();
  file_.end.in_use = false;
  file_.wake(0, UINT32_MAX);
  file_.lock.unlock();
}

Task<int> AtEnd::claim(PageCache& cache, Lane& lane, bool holds_pages) {
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file_.lock.lock();
    bool wait = file_.end.in_use || file_.end.wanted > 0;
    bool ours = file_.end.ours;
    if (wait) {
      file_.enlist(waiter);
    } else {
      file_.end.in_use = claimed_ = true;
    }
    file_.lock.unlock();
    if (wait) {
      co_await waiter;
      continue;
    }
    if (ours) co_return 0;
    extent::ControlCall call(cache.control_plane(), lane.reactor);
    call.kind = extent::ControlCall::Kind::claim_end;
    call.node = file_.node;
    call.holds_pages = holds_pages;
    int error = co_await call;
    file_.lock.lock();
    // Given to the client that this mount was before a fence; the file forgets its turns after that, under the lock.
    if (error == 0 && call.life() != cache.control_plane().life()) error = EAGAIN;
    file_.end.ours = error == 0;
    if (error != 0) {
      file_.end.in_use = claimed_ = false;
      file_.wake(0, UINT32_MAX);
    }
    file_.lock.unlock();
    if (error != EAGAIN) co_return error;
    co_await Sleep(lane.reactor, kAskAgainNs);
  }
}

Task<int> give_up_end(PageCache& cache, Lane& lane, File& file) {
  file.lock.lock();
  file.end.ours = false;
  file.lock.unlock();
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  call.kind = extent::ControlCall::Kind::give_up_end;
  call.node = file.node;
  co_return co_await call;
}

}  // namespace extmem::cache
