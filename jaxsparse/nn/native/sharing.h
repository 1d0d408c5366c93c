// Dividing work among idle threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace jaxsparse {

// The images of one share of the work: [first, last).
struct Range {
  int64_t first, last;
};

inline Range share_of(int64_t images, int share, int shares) {
  return {images * share / shares, images * (share + 1) / shares};
}

// A thread pool, for one operation. The results do not depend on the number of idle threads.
//
// Waking a thread takes as long as a small part of the work. So threads that have finished look for
// the next part for a while before they leave, and the calling thread looks for the end before it
// sleeps.
class Helpers {
 public:
  using Task = std::function<void()>;

  Helpers(int64_t threads, std::function<void(Task)> schedule)
      : threads_(threads), schedule_(std::move(schedule)) {}
  ~Helpers() { team_->closed = true; }

  // Calls part(0), ..., part(count - 1) on this thread and on idle threads. It does not wait for
  // threads that have not started, so it also finishes if all other threads are busy.
  void run(int count, const std::function<void(int)>& part) const {
    const int64_t wanted = std::min<int64_t>(count, threads_) - 1;
    const auto work = std::make_shared<Work>(count, part);
    if (wanted > 0) team_->publish(work);
    for (int64_t missing = wanted - team_->members; missing > 0; --missing) {
      ++team_->members;
      schedule_([team = team_] { team->serve(); });
    }
    work->take();
    work->wait();
  }

 private:
  // Calls ready() until it is true, but not for long: about as long as waking a thread takes.
  template <class Ready>
  static bool soon(const Ready& ready) {
    for (int k = 0; k < kLooks; ++k) {
      if (ready()) return true;
      std::this_thread::yield();
    }
    return false;
  }
  static constexpr int kLooks = 200;

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
      const auto done = [this] { return done_ == count_; };
      if (soon(done)) return;
      std::unique_lock<std::mutex> lock(mutex_);
      all_done_.wait(lock, done);
    }

   private:
    const int count_;
    const std::function<void(int)> part_;
    std::atomic<int> next_{0}, done_{0};
    std::mutex mutex_;
    std::condition_variable all_done_;
  };

  // The other threads of an operation, and the work that they take part in.
  struct Team {
    std::atomic<int64_t> members{0}, published{0};
    std::atomic<bool> closed{false};
    const std::thread::id caller = std::this_thread::get_id();

    void publish(std::shared_ptr<Work> work) {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = std::move(work), ++published;
    }

    void serve() {
      int64_t seen = 0;
      // A pool with a full queue calls the task on the calling thread, which has its own share.
      const bool other = std::this_thread::get_id() != caller;
      while (other && soon([&] { return closed || published != seen; }) && !closed) {
        std::shared_ptr<Work> work;
        {
          const std::lock_guard<std::mutex> lock(mutex_);
          work = work_, seen = published;
        }
        work->take();
      }
      --members;
    }

   private:
    std::mutex mutex_;
    std::shared_ptr<Work> work_;
  };

  int64_t threads_;
  std::function<void(Task)> schedule_;
  std::shared_ptr<Team> team_ = std::make_shared<Team>();
};

}  // namespace jaxsparse
