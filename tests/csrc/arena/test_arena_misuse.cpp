// Every misuse: a typed error or the fallback, never wrong data, and the arena goes on.
#include <atomic>
#include <cstring>
#include <thread>

#include "caught.h"
#include "random_work.h"

using namespace bimkern;

namespace {

void run_step(Arena& arena) {
  arena.open("block", kOwner);
  void* a = arena.allocate(100, kOwner);
  void* b = arena.allocate(200, kOwner);
  arena.free(a);
  arena.free(b);
  arena.close("block", kOwner);
}

// The same work as ever, after the misuse: planned, and nothing left behind.
void expect_usable(Arena& arena) {
  for (int i = 0; i < 6; ++i) {
    run_step(arena);
  }
  const int64_t planned = arena.statistics().planned;
  run_step(arena);
  EXPECT(arena.statistics().planned == planned + 2 && arena.statistics().live_blocks == 0);
}

void test_double_free() {
  FakeMemory memory;
  Arena arena(memory, false);
  for (int i = 0; i < 3; ++i) {
    run_step(arena);
  }
  arena.open("block", kOwner);
  void* a = arena.allocate(100, kOwner);
  arena.free(a);
  const Caught error = caught([&] { arena.free(a); });
  EXPECT(error.fault == Fault::kDoubleFree);
  EXPECT(error.text == message("arena: free of ", a, ", which is in the arena and not live"));
  EXPECT(!arena.try_free(a));
  arena.close("block", kOwner);
  expect_usable(arena);
}

void test_foreign_pointer() {
  FakeMemory memory;
  Arena arena(memory, false);
  int other = 0;
  const Caught error = caught([&] { arena.free(&other); });
  EXPECT(error.fault == Fault::kForeignPointer);
  EXPECT(error.text == message("arena: free of ", static_cast<void*>(&other), ", which the arena did not give out"));
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
    arena.open("block", kOwner);
    void* kept = arena.allocate(100, kOwner);  // by the traceback
    arena.close("block", kOwner, true);
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
  EXPECT(error.text == "arena: scope 'b' cannot open inside of 'a': scopes follow each other");
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
  Caught error = caught([&] { arena.open("block", kOther); });
  EXPECT(error.fault == Fault::kWrongOwner);
  EXPECT(error.text == "arena: open must come from the thread or stream that opened the first scope");
  arena.open("block", kOwner);
  EXPECT(caught([&] { arena.allocate(1, kOther); }).fault == Fault::kWrongOwner);
  EXPECT(caught([&] { arena.close("block", kOther); }).fault == Fault::kWrongOwner);
  arena.close("block", kOwner);
  expect_usable(arena);
}

void test_no_bytes() {
  FakeMemory memory;
  Arena arena(memory, false);
  arena.open("block", kOwner);
  const Caught error = caught([&] { arena.allocate(0, kOwner); });
  EXPECT(error.fault == Fault::kBadSize && error.text == "arena: allocate needs at least 1 byte, got 0");
  arena.close("block", kOwner);
  expect_usable(arena);
}

// Whichever call of the upstream fails: an allocation says so, a region is done without, and all goes on.
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
          arena.close("block", kOwner, true);
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
  arena.open("block", kOwner);
  unsigned char* a = static_cast<unsigned char*>(arena.allocate(100, kOwner));
  EXPECT(memory.holds(a, kPoison, 100));  // nothing of the step before
  std::memset(a, 1, 100);
  arena.free(a);
  EXPECT(memory.holds(a, kPoison, 100));
  arena.close("block", kOwner);

  arena.open("block", kOwner);
  a = static_cast<unsigned char*>(arena.allocate(100, kOwner));
  unsigned char* b = static_cast<unsigned char*>(arena.allocate(200, kOwner));
  b[200] = 0;
  arena.free(a);
  arena.free(b);
  const Caught error = caught([&] { arena.close("block", kOwner); });
  EXPECT(error.fault == Fault::kOverrun);
  EXPECT(error.text == "arena: something wrote behind a block of 200 bytes, allocation 1 of scope 'block'");
  EXPECT(arena.statistics().overruns == 1);
  expect_usable(arena);
}

// Blocks are handed to other threads, which write to them and free them whenever they like.
void test_frees_from_other_threads() {
  HostMemory memory;
  Arena arena(memory, false);
  std::atomic<int> wrong{0};
  for (int step = 0; step < 200; ++step) {
    std::vector<std::thread> threads;
    arena.open("block", kOwner);
    for (int i = 0; i < 3; ++i) {
      void* block = arena.allocate(1000, kOwner);
      const unsigned char mark = static_cast<unsigned char>(3 * step + i);
      memory.fill(block, mark, 1000);
      threads.emplace_back([&, block, mark] {
        wrong += !memory.holds(block, mark, 1000);
        arena.free(block);
      });
      void* own = arena.allocate(500, kOwner);
      memory.fill(own, 0, 500);
      arena.free(own);
    }
    arena.close("block", kOwner);
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
  EXPECT(wrong == 0);
  EXPECT(arena.statistics().live_blocks == 0 && arena.statistics().planned > 0);
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
