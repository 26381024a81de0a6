// Contract: host_hook.h.
#include "host_hook.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

namespace bimkern {

struct HostArena::Shared {
  Shared(c10::Allocator& allocator, bool debug) : memory(allocator), arena(memory, debug) {}
  TorchMemory memory;
  Arena arena;
  bool closed = false;  // no more scopes will open
};

namespace {

constexpr uint8_t kPriority = 0;

thread_local Arena* current = nullptr;

Owner this_thread() { return std::hash<std::thread::id>()(std::this_thread::get_id()); }

void release_allocation(void* address);

}  // namespace

// One for the process. It is never deleted: storages keep a pointer to the allocator that made them.
class HostHook final : public c10::Allocator {
 public:
  static HostHook& get() {
    static HostHook* hook = new HostHook;
    return *hook;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return torch_->allocate(bytes);
    }
    if (current != nullptr) {
      void* address = current->allocate(static_cast<int64_t>(bytes), this_thread());
      return {address, address, &release_allocation, c10::Device(c10::DeviceType::CPU)};
    }
    if (num_open_.load(std::memory_order_relaxed) > 0) {
      allocations_.fetch_add(1, std::memory_order_relaxed);
      bytes_.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
    }
    return torch_->allocate(bytes);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release_allocation; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  c10::Allocator& torch() const { return *torch_; }

  void add(const std::shared_ptr<HostArena::Shared>& arena) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (num_in_use_++ == 0) {
      c10::SetAllocator(c10::DeviceType::CPU, this, kPriority);
    }
    arenas_.push_back(arena);
  }

  void remove(const std::shared_ptr<HostArena::Shared>& arena) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--num_in_use_ == 0) {
      c10::SetAllocator(c10::DeviceType::CPU, torch_, kPriority);
    }
    arena->closed = true;
    forget_if_done(*arena);
  }

  // Frees memory of an arena or of torch's allocator: raw_deleter() serves both.
  void release(void* address) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& arena : arenas_) {
        if (arena->arena.try_free(address)) {
          forget_if_done(*arena);
          return;
        }
      }
    }
    torch_->raw_deallocate(address);
  }

  void scope_opened() { num_open_.fetch_add(1, std::memory_order_relaxed); }
  void scope_closed() { num_open_.fetch_sub(1, std::memory_order_relaxed); }
  OtherAllocations other_allocations() const {
    return {allocations_.load(std::memory_order_relaxed), bytes_.load(std::memory_order_relaxed)};
  }

 private:
  HostHook() : torch_(c10::GetAllocator(c10::DeviceType::CPU)) {}

  void forget_if_done(const HostArena::Shared& arena) {
    if (arena.closed && arena.arena.statistics().live_allocations == 0) {
      arenas_.erase(std::find_if(arenas_.begin(), arenas_.end(), [&](const auto& a) { return a.get() == &arena; }));
    }
  }

  c10::Allocator* torch_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<HostArena::Shared>> arenas_;  // also closed ones, while tensors live in them
  int64_t num_in_use_ = 0;
  std::atomic<int64_t> num_open_{0}, allocations_{0}, bytes_{0};
};

namespace {

void release_allocation(void* address) { HostHook::get().release(address); }

}  // namespace

HostArena::HostArena(bool debug) : shared_(std::make_shared<Shared>(HostHook::get().torch(), debug)) {
  HostHook::get().add(shared_);
}

HostArena::~HostArena() {
  if (current == &shared_->arena) {
    current = nullptr;
    HostHook::get().scope_closed();
  }
  HostHook::get().remove(shared_);
}

Arena& HostArena::arena() { return shared_->arena; }

void HostArena::open(const std::string& scope) {
  BIMKERN_ARENA_CHECK(current == nullptr || current == &shared_->arena, Fault::kScope, "scope '", scope,
                      "' cannot open: this thread is in a scope of another arena");
  shared_->arena.open(scope, this_thread());
  current = &shared_->arena;
  HostHook::get().scope_opened();
  before_ = HostHook::get().other_allocations();
}

void HostArena::close(const std::string& scope, bool aborted) {
  const auto leave = [&] {
    const OtherAllocations now = HostHook::get().other_allocations();
    others_.count += now.count - before_.count;
    others_.bytes += now.bytes - before_.bytes;
    HostHook::get().scope_closed();
    current = nullptr;
  };
  try {
    shared_->arena.close(scope, this_thread(), aborted);
  } catch (const ArenaError& error) {
    if (reported_after_closing(error.fault())) {
      leave();
    }
    throw;
  }
  leave();
}

}  // namespace bimkern
