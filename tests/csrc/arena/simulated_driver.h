// A simulated device with memory: work submitted to a stream is queued, and runs later in a random order that streams
// and events allow. So work that lacks an event reads or writes memory at a wrong time, and its data is wrong.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "arena/driver.h"
#include "arena/upstream.h"
#include "random_work.h"

namespace bimkern {

class SimulatedDriver : public Driver {
 public:
  using Work = std::function<void()>;

  void launch(Stream stream, Work work) { queues_[stream].push_back({std::move(work), kNoEvent}); }

  // Memory that was freed on another stream is reused once that free has run, on the same stream at once.
  void* allocate(int64_t bytes, Stream stream) override {
    for (Chunk& chunk : chunks_) {
      if (chunk.free && chunk.bytes >= bytes && (chunk.stream == stream || done_[chunk.freed])) {
        chunk.free = false;
        live_bytes_ += bytes;
        return chunk.memory.get();
      }
    }
    const int64_t rounded = ceil_div(bytes, kDriverAlignment) * kDriverAlignment;
    void* address = std::aligned_alloc(kDriverAlignment, static_cast<size_t>(rounded));
    chunks_.push_back({Memory(address, &std::free), rounded, false, stream, kNoEvent});
    live_bytes_ += bytes;
    return address;
  }

  // The driver may do anything to memory that is freed: here it overwrites it.
  void free(void* address, int64_t bytes, Stream stream) override {
    const auto found =
        std::find_if(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) { return chunk.memory.get() == address; });
    fill(address, kJunk, found->bytes, stream);
    found->free = true;
    found->stream = stream;
    found->freed = record(stream);
    live_bytes_ -= bytes;
  }

  Event record(Stream stream) override {
    const Event event = done_.size();
    done_.push_back(false);
    recorders_.push_back(stream);
    launch(stream, [this, event] { done_[event] = true; });
    return event;
  }

  void wait(Stream stream, Event event) override {
    queues_[stream].push_back({[] {}, event});
  }

  void fill(void* address, unsigned char value, int64_t bytes, Stream stream) override {
    launch(stream, [=] { std::memset(address, value, static_cast<size_t>(bytes)); });
  }

  bool holds(const void* address, unsigned char value, int64_t bytes, Stream stream) override {
    synchronize(stream);
    return HostMemory().holds(address, value, bytes);
  }

  // Lets the device work for a while. Most of the time one stream is slow: it runs only if no other can.
  void run_some() {
    if (one_in(20)) {
      slow_ = random_below(static_cast<int64_t>(queues_.size()) + 1);
    }
    for (int64_t left = one_in(3) ? random_below(20) : 0; left > 0; --left) {
      std::vector<Stream> ready;
      int64_t index = 0;
      for (const auto& [stream, queue] : queues_) {
        if (is_ready(queue) && index != slow_) {
          ready.push_back(stream);
        }
        ++index;
      }
      if (ready.empty()) {
        return;
      }
      run_next(ready[static_cast<size_t>(random_below(static_cast<int64_t>(ready.size())))]);
    }
  }

  // Runs all work of the stream, and of the others only what it waits for.
  void synchronize(Stream stream) {
    while (!queues_[stream].empty()) {
      advance(stream);
    }
  }
  void synchronize() {
    for (const auto& [stream, queue] : queues_) {
      synchronize(stream);
    }
  }

  int64_t live_bytes() const { return live_bytes_; }
  int64_t num_run() const { return num_run_; }

 private:
  static constexpr Event kNoEvent = ~Event{0};
  static constexpr unsigned char kJunk = 0xDD;

  struct Operation {
    Work work;
    Event waits_for;
  };
  using Queue = std::deque<Operation>;
  using Memory = std::unique_ptr<void, decltype(&std::free)>;
  struct Chunk {
    Memory memory;
    int64_t bytes;
    bool free;
    Stream stream;  // of the last free
    Event freed;
  };

  bool is_ready(const Queue& queue) const {
    return !queue.empty() && (queue.front().waits_for == kNoEvent || done_[queue.front().waits_for]);
  }

  // An event is recorded before it is waited for, so that this ends.
  void advance(Stream stream) {
    while (!is_ready(queues_[stream])) {
      advance(recorders_[queues_[stream].front().waits_for]);
    }
    run_next(stream);
  }

  void run_next(Stream stream) {
    const Work work = std::move(queues_[stream].front().work);
    queues_[stream].pop_front();
    work();
    ++num_run_;
  }

  std::map<Stream, Queue> queues_;
  std::vector<bool> done_;  // by event
  std::vector<Stream> recorders_;
  std::vector<Chunk> chunks_;
  int64_t slow_ = 0;  // index of the slow stream; that of none: all are equally fast
  int64_t live_bytes_ = 0, num_run_ = 0;
};

}  // namespace bimkern
