// Kernels are compiled with -fsanitize=thread, which calls a function at every access; those functions are here, in
// place of ThreadSanitizer's. Accesses of a warp's lanes are one where they come from the same instruction, for the
// same time in their lane.
#include "counter.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <unordered_map>

#include "host_cuda.h"

namespace host_cuda {
namespace {

constexpr unsigned kWarp = 32;
constexpr uint64_t kSector = 32;
constexpr uint64_t kBank = 4;           // bytes
constexpr unsigned kWidest = 16;        // bytes that one instruction moves for a lane
constexpr uint64_t kPassBytes = 128;    // of shared memory
constexpr size_t kSharedWords = 65536;  // more than a block can have
constexpr size_t kDeviceBytes = size_t{64} << 20;
constexpr size_t kAlignment = 512;

struct DeviceMemory {
  char* const begin = static_cast<char*>(std::aligned_alloc(kAlignment, kDeviceBytes));
  size_t used = 0;

  bool holds(const void* at) const { return at >= begin && at < begin + used; }
} device;

size_t sort_distinct(std::vector<uint64_t>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values.size();
}

class Counter : public Observer {
 public:
  std::vector<LaunchTraffic> launches;

  void launch_begins(const void* kernel, dim3, dim3, size_t) override {
    launches.push_back({kernel, {}});
    known_.clear();
    launch_sectors_.clear();
  }
  void block_begins(uint64_t, unsigned threads) override {
    turns_.assign(threads, {});
    records_.clear();
    ++block_;
  }
  void thread_runs(int thread) override { thread_ = thread; }
  void block_barrier() override {}
  void warp_barrier(unsigned, unsigned) override {}
  void block_ends() override { count_block(); }
  void launch_ends() override { launches.back().launch_sectors = sort_distinct(launch_sectors_); }

  void note(const void* at, size_t bytes, Access access, uintptr_t address) {
    const bool shared = thread_ >= 0 && is_shared(at);
    if (thread_ < 0 || !(shared || device.holds(at))) {
      return;
    }
    if (shared) {
      check_written(reinterpret_cast<uintptr_t>(at), bytes, access);
    }
    // The parts of what is wider than one instruction get addresses of their own, within the call.
    for (unsigned part = 0; part * kWidest < bytes; ++part) {
      const auto width = static_cast<unsigned>(std::min<size_t>(kWidest, bytes - part * kWidest));
      const uint64_t index = index_of({address - part, shared, access, width});
      auto& turns = turns_[thread_];
      turns.resize(std::max<size_t>(turns.size(), index + 1));
      const uint64_t warp = static_cast<unsigned>(thread_) / kWarp, lane = static_cast<unsigned>(thread_) % kWarp;
      records_.push_back({((warp << 16 | index) << 32 | turns[index]++) << 5 | lane,
                          reinterpret_cast<uintptr_t>(at) + part * kWidest});
    }
  }

 private:
  // An access of a lane. Keys sort by warp, instruction, turn, lane.
  struct Record {
    uint64_t key;
    uintptr_t at;

    uint64_t warp_access() const { return key >> 5; }
    uint64_t lane() const { return key % kWarp; }
  };

  int thread_ = -1;
  std::unordered_map<uintptr_t, uint64_t> known_;  // instructions, by address and space
  std::vector<std::vector<uint32_t>> turns_;       // of each thread, at each instruction
  std::vector<Record> records_;                    // of the block
  std::vector<uint64_t> block_sectors_, launch_sectors_, scratch_;

  uint32_t block_ = 0;                                                   // counted over all launches
  std::vector<uint32_t> written_ = std::vector<uint32_t>(kSharedWords);  // in which block, of each word

  void check_written(uintptr_t at, size_t bytes, Access access) {
    for (uintptr_t word = at / kBank; word <= (at + bytes - 1) / kBank; ++word) {
      uint32_t& written = written_[word % kSharedWords];
      launches.back().uninitialized += access != Access::kWrite && written != block_ ? 1 : 0;
      written = access == Access::kRead ? written : block_;
    }
  }

  uint64_t index_of(const Instruction& instruction) {
    auto& instructions = launches.back().instructions;
    const auto [found, added] =
        known_.emplace(instruction.address * 2 + (instruction.shared ? 1 : 0), instructions.size());
    if (added) {
      instructions.push_back(instruction);
    }
    return found->second;
  }

  void count_block() {
    std::sort(records_.begin(), records_.end(), [](const Record& a, const Record& b) { return a.key < b.key; });
    block_sectors_.clear();
    for (auto first = records_.begin(); first != records_.end();) {
      const auto last = std::find_if(
          first, records_.end(), [&](const Record& record) { return record.warp_access() != first->warp_access(); });
      Instruction& instruction = launches.back().instructions[first->key >> 37 & 0xffff];
      ++instruction.warps;
      instruction.bytes += static_cast<uint64_t>(last - first) * instruction.width;
      if (instruction.shared) {
        count_passes(instruction, &*first, &*first + (last - first));
      } else {
        count_sectors(instruction, &*first, &*first + (last - first));
      }
      first = last;
    }
    launches.back().block_sectors += sort_distinct(block_sectors_);
    launch_sectors_.insert(launch_sectors_.end(), block_sectors_.begin(), block_sectors_.end());
  }

  // Lanes that read the same bytes read them once.
  void count_sectors(Instruction& instruction, const Record* first, const Record* last) {
    const uint64_t is_read = instruction.access == Access::kRead ? 1 : 0;
    scratch_.clear();
    for (const Record* record = first; record < last; ++record) {
      scratch_.push_back(record->at);
    }
    instruction.least_cost += (sort_distinct(scratch_) * instruction.width + kSector - 1) / kSector;
    scratch_.clear();
    for (const Record* record = first; record < last; ++record) {
      for (uint64_t sector = record->at / kSector; sector <= (record->at + instruction.width - 1) / kSector; ++sector) {
        scratch_.push_back(sector * 2 + is_read);
      }
    }
    instruction.cost += sort_distinct(scratch_);
    block_sectors_.insert(block_sectors_.end(), scratch_.begin(), scratch_.end());
  }

  // Wide accesses take the lanes in parts; a bank gives one word a pass, to all lanes that want it.
  void count_passes(Instruction& instruction, const Record* first, const Record* last) {
    const uint64_t lanes = std::min<uint64_t>(kWarp, kPassBytes / instruction.width);
    while (first < last) {
      const uint64_t part = first->lane() / lanes;
      scratch_.clear();
      for (; first < last && first->lane() / lanes == part; ++first) {
        for (uint64_t word = first->at / kBank; word <= (first->at + instruction.width - 1) / kBank; ++word) {
          scratch_.push_back(word);
        }
      }
      sort_distinct(scratch_);
      std::array<uint64_t, kWarp> words{};
      for (const uint64_t word : scratch_) {
        ++words[word % kWarp];
      }
      instruction.cost += *std::max_element(words.begin(), words.end());
      instruction.least_cost += (scratch_.size() + kWarp - 1) / kWarp;
    }
  }
};

Counter* counter = nullptr;

void note(const void* at, size_t bytes, Access access, void* address) {
  if (counter != nullptr) {
    counter->note(at, bytes, access, reinterpret_cast<uintptr_t>(address));
  }
}

}  // namespace

std::vector<LaunchTraffic> count_traffic(const std::function<void()>& run) {
  Counter own;
  counter = &own;
  set_observer(&own);
  run();
  set_observer(nullptr);
  counter = nullptr;
  return std::move(own.launches);
}

void* device_memory(size_t bytes) {
  if (device.used + bytes > kDeviceBytes) {
    throw std::runtime_error("device_memory: more than 64 MiB");
  }
  char* const at = device.begin + device.used;
  device.used += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return at;
}

void free_device_memory() { device.used = 0; }

}  // namespace host_cuda

// ---- what instrumented code calls
// ------------------------------------------------------------------------------------
using host_cuda::Access;
using host_cuda::note;

#define HOST_CUDA_CALLER __builtin_return_address(0)
#define HOST_CUDA_ACCESSES(size)                                                                  \
  void __tsan_read##size(void* at) { note(at, size, Access::kRead, HOST_CUDA_CALLER); }           \
  void __tsan_write##size(void* at) { note(at, size, Access::kWrite, HOST_CUDA_CALLER); }         \
  void __tsan_unaligned_read##size(void* at) { note(at, size, Access::kRead, HOST_CUDA_CALLER); } \
  void __tsan_unaligned_write##size(void* at) { note(at, size, Access::kWrite, HOST_CUDA_CALLER); }
// An atomic update is a load and a compare-exchange here: intrinsics.h. The second counts.
#define HOST_CUDA_ATOMICS(bits, T)                                                                    \
  T __tsan_atomic##bits##_load(const volatile T* at, int) { return *at; }                             \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* at, T* expected, T value, int, int) { \
    note(const_cast<T*>(at), sizeof(T), Access::kAtomic, HOST_CUDA_CALLER);                           \
    const bool equal = *at == *expected;                                                              \
    (equal ? *at : *expected) = equal ? value : *at;                                                  \
    return equal;                                                                                     \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
HOST_CUDA_ACCESSES(1)
HOST_CUDA_ACCESSES(2)
HOST_CUDA_ACCESSES(4)
HOST_CUDA_ACCESSES(8)
HOST_CUDA_ACCESSES(16)
void __tsan_read_range(void* at, size_t size) { note(at, size, Access::kRead, HOST_CUDA_CALLER); }
void __tsan_write_range(void* at, size_t size) { note(at, size, Access::kWrite, HOST_CUDA_CALLER); }
HOST_CUDA_ATOMICS(32, uint32_t)
HOST_CUDA_ATOMICS(64, uint64_t)
}
