// Every misuse: a typed error or the fallback, never wrong data, and the arena stays usable.
#include <atomic>
#include <cstring>
#include <thread>

#include "caught.h"
#include "random_work.h"

using namespace bimkern;

namespace {

void run_step(Arena& arena) {
  arena.open("layer", kOwner);
  void* a = arena.allocate(100, kOwner);
  void* b = arena.allocate(200, kOwner);
  arena.free(a);
  arena.free(b);
  arena.close("layer", kOwner);
}

// The same work as ever, after the misuse: planned, and nothing left behind.
void expect_usable(Arena& arena) {
  for (int i = 0; i < 6; ++i) {
    run_step(arena);
  }
  const int64_t planned = arena.statistics().planned;
  run_step(arena);
  EXPECT(arena.statistics().planned == planned + 2 && arena.statistics().live_allocations == 0);
}

void test_double_free() {
  FakeMemory memory;
  Arena arena(memory, false);
  for (int i = 0; i < 3; ++i) {
    run_step(arena);
  }
  arena.open("layer", kOwner);
  void* a = arena.allocate(100, kOwner);
  arena.free(a);
  const Caught error = caught([&] { arena.free(a); });
  EXPECT(error.fault == Fault::kDoubleFree);
  EXPECT(error.text == message("arena: free of ", a, ", which the arena owns but is not live"));
  EXPECT(!arena.try_free(a));
  arena.close("layer", kOwner);
  expect_usable(arena);
}

void test_foreign_pointer() {
  FakeMemory memory;
  Arena arena(memory, false);
  int other = 0;
  const Caught error = caught([&] { arena.free(&other); });
  EXPECT(error.fault == Fault::kForeignPointer);
  EXPECT(error.text == message("arena: free of ", static_cast<void*>(&other), ", which the arena did not allocate"));
  EXPECT(!arena.try_free(&other));
  expect_usable(arena);
}

void test_scope_left_by_an_exception() {
  FakeMemory memory;
  Arena arena(memory, false);
  for (const int good_steps : {0, 1, 3}) {  // while nothing is recorded, while it is, and under the plan
    for (int i = 0; i < good_steps; ++i) {
      run_step(arena);
    }
    arena.open("layer", kOwner);
    void* kept = arena.allocate(100, kOwner);  // by the traceback
    arena.close("layer", kOwner, true);
    run_step(arena);
    arena.free(kept);
    expect_usable(arena);
  }
}

void test_nested_and_crossed_scopes() {
  FakeMemory memory;
  Arena arena(memory, false);
  Caught error = caught([&] { arena.close("a", kOwner); });
  EXPECT(error.fault == Fault::kScope && error.text == "arena: scope 'a' cannot close: none is open");
  error = caught([&] { arena.allocate(1, kOwner); });
  EXPECT(error.fault == Fault::kScope && error.text == "arena: allocate needs an open scope");
  arena.open("a", kOwner);
  error = caught([&] { arena.open("b", kOwner); });
  EXPECT(error.fault == Fault::kScope);
  EXPECT(error.text == "arena: scope 'b' cannot open inside 'a': scopes cannot nest");
  error = caught([&] { arena.close("b", kOwner); });
  EXPECT(error.fault == Fault::kScope && error.text == "arena: scope 'b' cannot close: the open one is 'a'");
  arena.free(arena.allocate(1, kOwner));
  arena.close("a", kOwner);
  expect_usable(arena);
}

void test_another_owner() {
  FakeMemory memory;
  Arena arena(memory, false);
  run_step(arena);
  constexpr Owner kOther = 2;
  Caught error = caught([&] { arena.open("layer", kOther); });
  EXPECT(error.fault == Fault::kWrongOwner);
  EXPECT(error.text == "arena: open must come from the thread or stream that opened the first scope");
  arena.open("layer", kOwner);
  EXPECT(caught([&] { arena.allocate(1, kOther); }).fault == Fault::kWrongOwner);
  EXPECT(caught([&] { arena.close("layer", kOther); }).fault == Fault::kWrongOwner);
  arena.close("layer", kOwner);
  expect_usable(arena);
}

void test_no_bytes() {
  FakeMemory memory;
  Arena arena(memory, false);
  arena.open("layer", kOwner);
  const Caught error = caught([&] { arena.allocate(0, kOwner); });
  EXPECT(error.fault == Fault::kBadSize && error.text == "arena: allocate needs at least 1 byte, got 0");
  arena.close("layer", kOwner);
  expect_usable(arena);
}

// Any call of the upstream may fail: an allocation throws, a plan is dropped, and the arena stays usable.
void test_upstream_fails_at_every_call() {
  int64_t refused = 0, failed = 0;
  for (int64_t call = 1; call <= 6; ++call) {
    FakeMemory memory;
    {
      Arena arena(memory, false);
      memory.fail_at_call(call);
      for (int i = 0; i < 3; ++i) {
        const Caught error = caught([&] { run_step(arena); });
        if (error.fault) {
          EXPECT(error.fault == Fault::kNoMemory);
          EXPECT(error.text == "arena: no memory for 100 bytes" || error.text == "arena: no memory for 200 bytes");
          ++failed;
          arena.close("layer", kOwner, true);
        }
      }
      refused += arena.statistics().refused_plans;
      memory.fail_at_call(0);
      for (int i = 0; i < 6; ++i) {
        run_step(arena);
      }
      EXPECT(arena.has_plan() && arena.statistics().upstream_calls_last_step == 0);
    }
    EXPECT(memory.live_bytes() == 0 && memory.mistakes() == 0);
  }
  EXPECT(failed == 4 && refused == 1);
}

void test_poison_and_canary() {
  HostMemory memory;
  Arena arena(memory, true);
  for (int i = 0; i < 3; ++i) {
    run_step(arena);
  }
  arena.open("layer", kOwner);
  unsigned char* a = static_cast<unsigned char*>(arena.allocate(100, kOwner));
  EXPECT(memory.holds(a, kPoison, 100));  // nothing of the step before
  std::memset(a, 1, 100);
  arena.free(a);
  EXPECT(memory.holds(a, kPoison, 100));
  arena.close("layer", kOwner);

  arena.open("layer", kOwner);
  a = static_cast<unsigned char*>(arena.allocate(100, kOwner));
  unsigned char* b = static_cast<unsigned char*>(arena.allocate(200, kOwner));
  b[200] = 0;
  arena.free(a);
  arena.free(b);
  const Caught error = caught([&] { arena.close("layer", kOwner); });
  EXPECT(error.fault == Fault::kOverrun);
  EXPECT(error.text == "arena: write past the end of allocation 1 of scope 'layer' (200 bytes)");
  EXPECT(arena.statistics().overruns == 1);
  expect_usable(arena);
}

// Allocations are handed to other threads, which write to them and free them whenever they like.
void test_frees_from_other_threads() {
  HostMemory memory;
  Arena arena(memory, false);
  std::atomic<int> wrong{0};
  for (int step = 0; step < 200; ++step) {
    std::vector<std::thread> threads;
    arena.open("layer", kOwner);
    for (int i = 0; i < 3; ++i) {
      void* allocation = arena.allocate(1000, kOwner);
      const unsigned char mark = static_cast<unsigned char>(3 * step + i);
      memory.fill(allocation, mark, 1000);
      threads.emplace_back([&, allocation, mark] {
        wrong += !memory.holds(allocation, mark, 1000);
        arena.free(allocation);
      });
      void* own = arena.allocate(500, kOwner);
      memory.fill(own, 0, 500);
      arena.free(own);
    }
    arena.close("layer", kOwner);
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
  EXPECT(wrong == 0);
  EXPECT(arena.statistics().live_allocations == 0 && arena.statistics().planned > 0);
}

}  // namespace

int main() {
  test_double_free();
  test_foreign_pointer();
  test_scope_left_by_an_exception();
  test_nested_and_crossed_scopes();
  test_another_owner();
  test_no_bytes();
  test_upstream_fails_at_every_call();
  test_poison_and_canary();
  test_frees_from_other_threads();
  return failures() > 0;
}
