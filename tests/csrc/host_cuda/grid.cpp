// A launch: checked as the runtime checks it, then block after block, one launch at a time.
#include <algorithm>
#include <mutex>
#include <numeric>

#include "machine.h"

namespace host_cuda {
namespace {

constexpr size_t kMaxShared = 227 * 1024;

struct Allowed {
  const void* kernel;
  size_t shared_bytes;
};

std::mutex launching;
std::vector<Allowed> allowed;
thread_local cudaError_t last = cudaSuccess;
thread_local std::string last_text;

size_t most_shared(const void* kernel) {
  size_t most = kDefaultShared;
  for (const Allowed& one : allowed) {
    most = one.kernel == kernel ? std::min(std::max(most, one.shared_bytes), kMaxShared) : most;
  }
  return most;
}

bool can_launch(dim3 grid, dim3 block, size_t shared_bytes, const void* kernel) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return threads > 0 && threads <= kMaxThreads && block.z <= 64 && grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 &&
         grid.y <= 0xffffu && grid.z > 0 && grid.z <= 0xffffu && shared_bytes <= most_shared(kernel);
}

}  // namespace

Machine& machine() {
  static auto* one = new Machine;  // kernels may run until the process ends
  return *one;
}

void run_grid(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
              const void* context) {
  const std::lock_guard<std::mutex> lock(launching);
  Machine& m = machine();
  if (!can_launch(grid, block, shared_bytes, kernel)) {
    last = cudaErrorInvalidConfiguration;
    last_text = "invalid configuration argument";
    return;
  }
  gridDim = grid;
  blockDim = block;
  m.count = block.x * block.y * block.z;
  m.body = body;
  m.context = context;
  m.fault.reset();
  std::vector<unsigned> turns(m.count);
  std::iota(turns.begin(), turns.end(), 0u);
  if (m.order == Order::kDescending) {
    std::reverse(turns.begin(), turns.end());
  }
  make_shared_memory(shared_bytes);
  observe([&](Observer& observer) { observer.launch_begins(kernel, grid, block, shared_bytes); });
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t shift = m.order == Order::kRandom ? m.random() % blocks : 0;
  for (uint64_t i = 0; i < blocks && !m.fault; ++i) {
    run_block(m.order == Order::kDescending ? blocks - 1 - i : (i + shift) % blocks, turns);
  }
  observe([](Observer& observer) { observer.launch_ends(); });
  open_shared_memory();
  if (m.fault) {
    last = cudaErrorLaunchFailure;
    last_text = m.fault->text;
  }
}

void allow_shared(const void* kernel, size_t bytes) {
  const std::lock_guard<std::mutex> lock(launching);
  allowed.push_back({kernel, bytes});
}

void set_order(Order order, uint64_t seed) {
  machine().order = order;
  machine().random.seed(seed);
}

void set_observer(Observer* observer) { machine().observer = observer; }

}  // namespace host_cuda

cudaError_t cudaGetLastError() { return std::exchange(host_cuda::last, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : host_cuda::last_text.c_str();
}
