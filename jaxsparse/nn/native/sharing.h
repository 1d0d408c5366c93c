// Dividing work among the threads that have nothing to do.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace jaxsparse {

// Which images a share of the work is about: [first, last).
struct Range {
  int64_t first, last;
};

inline Range share_of(int64_t images, int share, int shares) {
  return {images * share / shares, images * (share + 1) / shares};
}

// Threads that may be idle. What is computed does not depend on how many are.
class Helpers {
 public:
  using Task = std::function<void()>;

  Helpers(int64_t threads, std::function<void(Task)> schedule)
      : threads_(threads), schedule_(std::move(schedule)) {}

  // Calls part(0), ..., part(count - 1): here, and on helpers that take some before they are done
  // here. Nobody waits for a helper that has not begun, so that this ends where all are busy.
  void run(int count, const std::function<void(int)>& part) const {
    const auto work = std::make_shared<Work>(count, part);
    for (int64_t k = 1; k < std::min<int64_t>(count, threads_); ++k)
      schedule_([work] { work->take(); });
    work->take();
    work->wait();
  }

 private:
  class Work {
   public:
    Work(int count, const std::function<void(int)>& part) : count_(count), part_(part) {}

    void take() {
      for (int k = next_++; k < count_; k = next_++) {
        part_(k);
        const std::lock_guard<std::mutex> lock(mutex_);
        if (++done_ == count_) all_done_.notify_all();
      }
    }

    void wait() {
      std::unique_lock<std::mutex> lock(mutex_);
      all_done_.wait(lock, [this] { return done_ == count_; });
    }

   private:
    const int count_;
    const std::function<void(int)> part_;
    std::atomic<int> next_{0};
    int done_ = 0;
    std::mutex mutex_;
    std::condition_variable all_done_;
  };

  int64_t threads_;
  std::function<void(Task)> schedule_;
};

}  // namespace jaxsparse
