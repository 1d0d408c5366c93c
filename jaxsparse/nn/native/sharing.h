// Dividing work among idle threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace jaxsparse {

// The images of one share of the work: [first, last).
struct Range {
  int64_t first, last;
};

inline Range share_of(int64_t images, int share, int shares) {
  return {images * share / shares, images * (share + 1) / shares};
}

// A thread pool. The results do not depend on the number of idle threads.
class Helpers {
 public:
  using Task = std::function<void()>;

  Helpers(int64_t threads, std::function<void(Task)> schedule)
      : threads_(threads), schedule_(std::move(schedule)) {}

  // Calls part(0), ..., part(count - 1) on this thread and on idle threads. It does not wait for
  // threads that have not started, so it also finishes if all other threads are busy.
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
