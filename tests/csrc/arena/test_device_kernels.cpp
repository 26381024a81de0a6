// Kernels of several streams on memory of an arena: random training steps on a simulated device that runs them out of
// order. Every kernel compares what it reads with what the program wrote, so that a missing event, or memory that is
// reused too early, shows as wrong data. gather_tokens is the CUDA kernel, run on the host.
//   test_device_kernels [ALLOCATIONS]
#include <algorithm>
#include <numeric>
#include <set>

#include "arena/device.h"
#include "caught.h"
#include "ops/gather_tokens.h"
#include "simulated_driver.h"

using namespace bimkern;

namespace {

constexpr Stream kStreams[] = {kOwner, 2, 3};
constexpr int64_t kWidth = 4;  // floats of a token
constexpr int64_t kMostTokens = 100;

Stream any_stream() { return kStreams[random_below(3)]; }

struct Tensor {
  float* data;
  Stream owner;
  std::vector<float> expected;  // after all work that was submitted so far
  Stream writer;                // the stream of the last write, and its event
  Driver::Event written;
  std::set<Stream> readers;  // since the last write
  std::set<Stream> users;    // recorded streams

  int64_t tokens() const { return static_cast<int64_t>(expected.size()) / kWidth; }
};

class Program {
 public:
  explicit Program(bool debug) : device_(driver_), arena_(device_.make_arena(debug)), debug_(debug) {}

  void finish() {
    while (!free_later_.empty()) {
      free_one();
    }
    device_.close_arena(arena_);
    EXPECT(device_.live_bytes() == 0 && driver_.live_bytes() == 0);
    driver_.synchronize();
    EXPECT(mismatches_ == 0);
  }

  void run(const std::vector<Event>& step) {
    std::map<int32_t, Tensor> live;
    for (const Event& event : step) {
      const std::string name = "scope" + std::to_string(event.index);
      switch (event.kind) {
        case Event::kOpen:
          device_.open(arena_, name, kOwner);
          break;
        case Event::kClose: {
          const Caught error = caught([&] { device_.close(arena_, name, kOwner, false); });
          EXPECT(error.fault.has_value() == (debug_ && unsynchronized_ > 0));
          unsynchronized_ = 0;
          break;
        }
        case Event::kAllocate: {
          Tensor tensor = allocate(1 + event.bytes % kMostTokens, kOwner);
          const bool has_source = !live.empty() && live.rbegin()->second.tokens() >= tensor.tokens() && one_in(2);
          has_source ? gather(live.rbegin()->second, tensor, any_stream()) : fill(tensor, kOwner);
          live.emplace(event.index, std::move(tensor));
          break;
        }
        case Event::kFree:
          if (one_in(100)) {  // later than planned
            free_later_.push_back(std::move(live.at(event.index)));
          } else {
            free(live.at(event.index));
          }
          live.erase(event.index);
          break;
      }
      if (!live.empty() && one_in(2)) {
        read(live.rbegin()->second, any_stream());
      }
      if (one_in(10)) {  // not the step's, such as the loader's
        free_later_.push_back(allocate(1 + random_below(kMostTokens), any_stream()));
        fill(free_later_.back(), any_stream());
      }
      while (free_later_.size() > 10) {
        free_one();
      }
      if (!free_later_.empty() && one_in(4)) {
        read(free_later_[static_cast<size_t>(random_below(static_cast<int64_t>(free_later_.size())))], any_stream());
      }
      driver_.run_some();
    }
    for (auto& [index, tensor] : live) {
      free_later_.push_back(std::move(tensor));
    }
  }

  int64_t allocations() const { return allocations_; }
  Statistics statistics() const { return arena_.arena().statistics(); }

 private:
  Tensor allocate(int64_t tokens, Stream stream) {
    const size_t floats = static_cast<size_t>(tokens * kWidth);
    void* address = device_.allocate(static_cast<int64_t>(floats * sizeof(float)), stream);
    ++allocations_;
    return {static_cast<float*>(address), stream, std::vector<float>(floats), stream, driver_.record(stream), {}, {}};
  }

  // ---- what a correct program does around its kernels: wait for those that they depend on, and record the stream
  void before_read(Tensor& tensor, Stream stream) {
    if (tensor.writer != stream) {
      driver_.wait(stream, tensor.written);
    }
    tensor.readers.insert(stream);
    if (stream != tensor.owner) {
      EXPECT(device_.record(tensor.data, stream));
      tensor.users.insert(stream);
    }
  }
  void before_write(Tensor& tensor, Stream stream) {
    before_read(tensor, stream);
    for (const Stream reader : tensor.readers) {
      if (reader != stream) {
        driver_.wait(stream, driver_.record(reader));
      }
    }
  }
  void after_write(Tensor& tensor, Stream stream) {
    tensor.writer = stream;
    tensor.written = driver_.record(stream);
    tensor.readers.clear();
  }

  // ---- kernels
  void fill(Tensor& tensor, Stream stream) {
    before_write(tensor, stream);
    std::iota(tensor.expected.begin(), tensor.expected.end(), static_cast<float>(random_below(1 << 20)));
    driver_.launch(stream,
                   [to = tensor.data, values = tensor.expected] { std::copy(values.begin(), values.end(), to); });
    after_write(tensor, stream);
  }

  void read(Tensor& tensor, Stream stream) {
    before_read(tensor, stream);
    launch_read(tensor, stream);
  }

  void launch_read(const Tensor& tensor, Stream stream) {
    driver_.launch(stream, [this, from = tensor.data, values = tensor.expected] {
      mismatches_ += !std::equal(values.begin(), values.end(), from);
    });
  }

  // Keeps the tokens from a random one on.
  void gather(Tensor& source, Tensor& result, Stream stream) {
    before_read(source, stream);
    before_write(result, stream);
    std::vector<int64_t> ids(static_cast<size_t>(result.tokens()));
    const int64_t first = random_below(source.tokens());
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = (first + static_cast<int64_t>(i)) % source.tokens();
      std::copy_n(source.expected.begin() + ids[i] * kWidth, kWidth, result.expected.begin() + i * kWidth);
    }
    const TokenSizes size{1, 0, source.tokens(), result.tokens(), kWidth};
    driver_.launch(stream, [=, from = source.data, to = result.data] {
      const Keep keep{ids.data(), 0, 1};
      gather_tokens_cuda({DType::kFloat32, size, keep, from, 0, kWidth, nullptr, 0, to}, nullptr);
    });
    after_write(result, stream);
  }

  // Half of the time while a read is still queued, which may be on a stream that was not recorded, but that frees.
  void free(Tensor& tensor) {
    Stream on = tensor.owner;
    if (one_in(2)) {
      const Stream stream = any_stream();
      if (stream != tensor.owner && one_in(5)) {
        if (tensor.writer != stream) {
          driver_.wait(stream, tensor.written);
        }
        launch_read(tensor, stream);
        on = stream;
        unsynchronized_ += arena_.arena().is_live(tensor.data) && tensor.users.count(stream) == 0;
      } else {
        read(tensor, stream);
      }
    }
    device_.free(tensor.data, on);
  }

  void free_one() {
    const auto tensor = free_later_.begin() + random_below(static_cast<int64_t>(free_later_.size()));
    free(*tensor);
    free_later_.erase(tensor);
  }

  SimulatedDriver driver_;
  Device device_;
  Device::StreamArena& arena_;
  bool debug_;
  int64_t unsynchronized_ = 0;  // frees since a scope closed
  std::vector<Tensor> free_later_;
  int64_t allocations_ = 0, mismatches_ = 0;
};

// What the test relies on: without its event, work of another stream runs too early in some of the orders.
void test_a_missing_event_shows_as_wrong_data() {
  for (const bool waits : {true, false}) {
    int64_t wrong = 0;
    for (int repeat = 0; repeat < 1'000; ++repeat) {
      SimulatedDriver driver;
      int value = 0;
      driver.launch(1, [&] { value = 1; });
      if (waits) {
        driver.wait(2, driver.record(1));
      }
      driver.launch(2, [&] { wrong += value != 1; });
      for (int turn = 0; turn < 10; ++turn) {
        driver.run_some();
      }
      driver.synchronize();
    }
    EXPECT(waits ? wrong == 0 : 0 < wrong && wrong < 1'000);
  }
}

void test_random_programs(int64_t allocations) {
  constexpr int64_t kOfOneProgram = 2'000;
  int64_t planned = 0;
  for (int64_t done = 0; done < allocations; done += kOfOneProgram) {
    Program program(one_in(2));
    while (program.allocations() < kOfOneProgram) {
      const std::vector<Event> step =
          random_step(1 + static_cast<int32_t>(random_below(3)), 1 + static_cast<int32_t>(random_below(20)));
      for (int64_t i = 5 + random_below(20); i > 0; --i) {
        program.run(step);
      }
    }
    planned += program.statistics().planned;
    program.finish();
  }
  EXPECT(planned > allocations / 10);  // else nothing was tested
}

}  // namespace

int main(int argc, char** argv) {
  test_a_missing_event_shows_as_wrong_data();
  test_random_programs(argc > 1 ? std::atoll(argv[1]) : 40'000);
  return failures() > 0;
}
