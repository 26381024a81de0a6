// Streams: whose memory is whose, when an allocation is its owner's again, and every misuse.
#include <thread>

#include "caught.h"
#include "fake_driver.h"
#include "random_work.h"

#include "arena/device.h"

using namespace bimkern;

namespace {

constexpr Stream kOther = 2;

// A step on the owner's stream whose first allocation another stream may use, too.
struct Step {
  FakeDriver driver;
  Device device{driver};
  Device::StreamArena* arena;

  explicit Step(bool debug = false) : arena(&device.make_arena(debug)) {}

  void* born(int64_t bytes, Stream stream) {
    void* address = device.allocate(bytes, stream);
    driver.expect_done(address, bytes, stream);
    driver.touch(address, bytes, stream);
    return address;
  }

  void used_by(Stream stream, void* address, int64_t bytes) {
    driver.wait(stream, driver.record(kOwner));
    driver.touch(address, bytes, stream);
  }

  // -> the addresses of both allocations
  std::vector<void*> run(Stream user = kOwner) {
    device.open(*arena, "layer", kOwner);
    void* a = born(100, kOwner);
    if (user != kOwner) {
      used_by(user, a, 100);
      EXPECT(device.record(a, user));
    }
    device.free(a, kOwner);
    void* b = born(200, kOwner);
    device.free(b, kOwner);
    device.close(*arena, "layer", kOwner, false);
    return {a, b};
  }

  void expect_usable() {
    for (int i = 0; i < 6; ++i) {
      run();
    }
    const int64_t planned = arena->arena().statistics().planned;
    run();
    EXPECT(arena->arena().statistics().planned == planned + 2 && arena->arena().statistics().live_allocations == 0);
  }
};

void test_an_allocation_comes_back_behind_an_event_of_its_user() {
  Step step;
  std::vector<void*> addresses;
  for (int i = 0; i < 6; ++i) {
    const int64_t calls = step.driver.memory().calls(), waits = step.driver.num_waits();
    const std::vector<void*> now = step.run(kOther);
    if (i > 3) {
      EXPECT(now == addresses && now[0] == now[1]);  // the second allocation of a step is where the first was
      EXPECT(step.driver.memory().calls() == calls);
      EXPECT(step.driver.num_waits() == waits + 2);  // the user's for the owner, and the owner's for the user
    }
    addresses = now;
  }
  EXPECT(step.arena->arena().statistics().plans == 1 && step.arena->arena().statistics().diverged_steps == 0);
}

// What the device waits for because of an allocation that is recorded for some streams, one by one, and freed on a
// stream.
int64_t waits_for(Step& step, const std::vector<Stream>& recorded, Stream on) {
  const int64_t before = step.driver.num_waits();
  step.device.open(*step.arena, "layer", kOwner);
  void* a = step.born(100, kOwner);
  for (const Stream stream : recorded) {
    EXPECT(step.device.record(a, stream));
  }
  step.device.free(a, on);
  step.device.close(*step.arena, "layer", kOwner, false);
  return step.driver.num_waits() - before;
}

void test_a_stream_waits_for_others_alone() {
  Step step;
  step.expect_usable();
  EXPECT(step.driver.num_waits() == 0);
  EXPECT(waits_for(step, {kOwner}, kOwner) == 0);
}

void test_a_stream_that_is_recorded_twice_is_waited_for_once() {
  Step step;
  EXPECT(waits_for(step, {kOther, kOther}, kOther) == 1);
}

void test_other_streams_and_what_is_outside_of_scopes_are_served_by_the_pool() {
  Step step;
  step.expect_usable();
  const Statistics before = step.arena->arena().statistics();
  void* outside = step.born(1000, kOwner);
  step.device.open(*step.arena, "layer", kOwner);
  void* other = step.born(2000, kOther);
  step.device.close(*step.arena, "layer", kOwner, false);
  const Statistics after = step.arena->arena().statistics();
  EXPECT(after.planned == before.planned && after.unplanned == before.unplanned && after.live_allocations == 0);
  EXPECT(step.device.other_allocations(*step.arena).count == 1);
  EXPECT(step.device.other_allocations(*step.arena).bytes == 2000);
  const int64_t live = step.device.live_bytes();
  EXPECT(live == step.driver.memory().live_bytes() && live > 3000);
  step.used_by(kOther, outside, 1000);
  EXPECT(step.device.record(outside, kOther));
  step.device.free(outside, kOwner);  // the driver fails the test if its pool does not wait for the other stream
  step.device.free(other, kOther);
  EXPECT(step.device.live_bytes() == live - 3000 && step.device.peak_bytes() >= live);
}

// What one arena's scope allocates is an allocation of another stream for a second arena whose scope is open.
void test_each_open_scope_counts_what_others_allocate() {
  Step step;
  Device::StreamArena& second = step.device.make_arena(false);
  step.device.open(*step.arena, "layer", kOwner);
  step.device.open(second, "work", kOther);
  for (const int64_t bytes : {100, 200}) {
    step.device.free(step.born(bytes, kOther), kOther);
  }
  step.device.free(step.born(50, kOwner), kOwner);
  step.device.free(step.born(7, kOther + 1), kOther + 1);
  step.device.close(second, "work", kOther, false);
  step.device.close(*step.arena, "layer", kOwner, false);
  const OtherAllocations first = step.device.other_allocations(*step.arena),
                         other = step.device.other_allocations(second);
  EXPECT(first.count == 3 && first.bytes == 307);
  EXPECT(other.count == 2 && other.bytes == 57);
}

void test_threads_do_not_matter() {
  Step step;
  for (int i = 0; i < 6; ++i) {
    step.device.open(*step.arena, "layer", kOwner);
    void* kept = nullptr;
    std::thread([&] {
      step.device.free(step.born(100, kOwner), kOwner);
      kept = step.born(200, kOwner);
    }).join();
    step.device.free(kept, kOwner);
    step.device.close(*step.arena, "layer", kOwner, false);
  }
  const Statistics now = step.arena->arena().statistics();
  EXPECT(now.plans == 1 && now.upstream_calls_last_step == 0 && now.planned > 0);
}

// A loader's, while steps run: the sanitizers watch.
void test_threads_at_once() {
  Step step;
  std::vector<std::thread> threads;
  for (Stream stream = 2; stream < 5; ++stream) {
    threads.emplace_back([&step, stream] {
      for (int64_t i = 1; i < 300; ++i) {
        void* allocation = step.device.allocate(i, stream);
        EXPECT(step.device.record(allocation, kOwner));
        step.device.free(allocation, stream);
      }
    });
  }
  for (int i = 0; i < 100; ++i) {
    step.device.open(*step.arena, "layer", kOwner);
    void* lent = step.device.allocate(100, kOwner);
    EXPECT(step.device.record(lent, kOther));
    step.device.free(lent, kOwner);
    step.device.close(*step.arena, "layer", kOwner, false);
    EXPECT(step.device.live_bytes() <= step.device.peak_bytes());
    EXPECT(step.device.other_allocations(*step.arena).count < 3 * 300);
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const Statistics now = step.arena->arena().statistics();
  EXPECT(now.plans == 1 && now.live_allocations == 0 && now.upstream_calls_last_step == 0);
}

void test_allocations_outlive_a_closed_arena() {
  Step step;
  step.expect_usable();
  step.device.open(*step.arena, "layer", kOwner);
  void* kept = step.born(100, kOwner);
  step.device.close_arena(*step.arena);
  EXPECT(step.device.live_bytes() > 0);
  void* outside = step.born(100, kOwner);  // the scope is gone with its arena
  step.device.free(outside, kOwner);
  step.device.free(kept, kOwner);
  EXPECT(step.device.live_bytes() == 0 && step.driver.memory().live_bytes() == 0);
  EXPECT(step.driver.memory().mistakes() == 0);
}

void test_no_bytes() {
  Step step;
  EXPECT(step.device.allocate(0, kOwner) == nullptr);
  step.device.free(nullptr, kOwner);
  EXPECT(step.driver.memory().calls() == 0);
}

void test_no_memory() {
  Step step;
  step.driver.memory().fail_at_call(1);
  const Caught error = caught([&] { step.device.allocate(100, kOwner); });
  EXPECT(error.fault == Fault::kNoMemory && error.text == "arena: no memory for 100 bytes");
  step.driver.memory().fail_at_call(2);
  EXPECT(caught([&] { step.run(); }).fault == Fault::kNoMemory);
  step.device.close(*step.arena, "layer", kOwner, true);
  step.expect_usable();
}

void test_frees_of_what_is_not_live() {
  Step step;
  step.expect_usable();
  step.device.open(*step.arena, "layer", kOwner);
  void* a = step.born(100, kOwner);
  step.device.free(a, kOwner);
  Caught error = caught([&] { step.device.free(a, kOwner); });
  EXPECT(error.fault == Fault::kDoubleFree);
  EXPECT(error.text == message("arena: free of ", a, ", which the arena owns but is not live"));
  step.device.close(*step.arena, "layer", kOwner, false);
  int other = 0;
  error = caught([&] { step.device.free(&other, kOwner); });
  EXPECT(error.fault == Fault::kForeignPointer);
  EXPECT(error.text == message("arena: free of ", static_cast<void*>(&other), ", which the arena did not allocate"));
  step.expect_usable();
}

void test_an_error_that_was_kept_is_thrown_once_at_the_next_chance() {
  Step step;
  step.expect_usable();
  const auto keep = [&](Fault fault) { step.device.keep(ArenaError(fault, "kept")); };
  step.device.open(*step.arena, "layer", kOwner);
  keep(Fault::kDoubleFree);
  keep(Fault::kForeignPointer);  // only the first
  const Caught error = caught([&] { step.device.close(*step.arena, "layer", kOwner, false); });
  EXPECT(error.fault == Fault::kDoubleFree && error.text == "arena: kept");
  step.expect_usable();  // the scope has closed
  keep(Fault::kForeignPointer);
  EXPECT(caught([&] { step.device.open(*step.arena, "layer", kOwner); }).fault == Fault::kForeignPointer);
  step.expect_usable();  // the scope has not opened
  keep(Fault::kDoubleFree);
  EXPECT(caught([&] { step.device.make_arena(false); }).fault == Fault::kDoubleFree);
  step.device.close_arena(step.device.make_arena(false));
}

// Allocations are freed and arenas deleted while the driver's own error unwinds.
void test_a_device_that_has_failed() {
  Step step;
  step.expect_usable();
  void* pooled = step.born(1000, kOther);
  step.device.open(*step.arena, "layer", kOwner);
  void* lent = step.born(100, kOwner);
  EXPECT(step.device.record(lent, kOther));
  step.driver.broken(true);
  std::string text;
  try {
    step.device.free(lent, kOwner);
  } catch (const Error& error) {
    text = error.what();
  }
  EXPECT(text == "record failed");
  EXPECT(step.arena->arena().is_live(lent));
  step.device.free(pooled, kOther);
  step.device.close(*step.arena, "layer", kOwner, true);
  Device::StreamArena& second = step.device.make_arena(false);
  for (int i = 0; i < 4; ++i) {
    step.device.open(second, "work", kOther);
    step.device.free(step.born(100, kOther), kOther);
    step.device.close(second, "work", kOther, false);
  }
  EXPECT(second.arena().has_plan());
  const int64_t live = step.driver.memory().live_bytes();
  step.device.close_arena(second);  // its regions go in a destructor
  EXPECT(step.driver.memory().live_bytes() == live);
}

void test_a_record_of_what_is_not_live() {
  Step step;
  int other = 0;
  EXPECT(!step.device.record(&other, kOther));
  void* dead = step.run()[0];
  EXPECT(!step.device.record(dead, kOther));
  EXPECT(!step.device.record(nullptr, kOther));
  step.expect_usable();
  EXPECT(step.driver.num_waits() == 0);
}

void test_scopes_of_another_stream() {
  Step step;
  step.run();
  Caught error = caught([&] { step.device.open(*step.arena, "layer", kOther); });
  EXPECT(error.fault == Fault::kWrongOwner);
  EXPECT(error.text == "arena: open must come from the thread or stream that opened the first scope");
  step.device.open(*step.arena, "layer", kOwner);
  Device::StreamArena& second = step.device.make_arena(false);
  error = caught([&] { step.device.open(second, "work", kOwner); });
  EXPECT(error.fault == Fault::kScope);
  EXPECT(error.text == "arena: scope 'work' cannot open: this stream is in a scope of another arena");
  step.device.open(second, "work", kOther);  // on a stream of its own it can
  step.device.free(step.born(100, kOther), kOther);
  step.device.close(second, "work", kOther, false);
  EXPECT(second.arena().statistics().unplanned == 1);
  step.device.close(*step.arena, "layer", kOwner, false);
  step.expect_usable();
}

// The memory is correct in both modes; debug mode reports the missing record_stream.
void test_an_unsynchronized_free() {
  for (const bool debug : {false, true}) {
    Step step(debug);
    step.expect_usable();
    step.device.open(*step.arena, "layer", kOwner);
    void* a = step.born(100, kOwner);
    step.used_by(kOther, a, 100);
    step.device.free(a, kOther);
    step.device.free(step.born(200, kOwner), kOwner);
    const Caught error = caught([&] { step.device.close(*step.arena, "layer", kOwner, false); });
    if (debug) {
      EXPECT(error.fault == Fault::kUnsynchronizedFree);
      EXPECT(error.text ==
             "arena: allocation 0 of scope 'layer' (100 bytes) was freed on a stream that does not own it; call "
             "record_stream with that stream first");
    }
    EXPECT(error.fault.has_value() == debug);
    EXPECT(step.arena->arena().statistics().unsynchronized_frees == debug);
    step.expect_usable();
  }
}

void test_an_overrun_is_reported_when_the_scope_has_closed() {
  Step step(true);
  step.expect_usable();
  step.driver.overrun(true);
  EXPECT(caught([&] { step.run(); }).fault == Fault::kOverrun);
  step.driver.overrun(false);
  step.expect_usable();
}

// A canary is behind all that the allocation's users write, too.
void test_a_canary_is_looked_at_when_all_users_are_done() {
  Step step(true);
  step.expect_usable();
  step.device.open(*step.arena, "layer", kOwner);
  void* a = step.born(100, kOwner);
  step.used_by(kOther, static_cast<char*>(a) + 100, 1);  // the driver fails the test if it is read earlier
  EXPECT(step.device.record(a, kOther));
  step.device.free(a, kOwner);
  step.device.close(*step.arena, "layer", kOwner, false);
}

}  // namespace

int main() {
  test_an_allocation_comes_back_behind_an_event_of_its_user();
  test_a_stream_waits_for_others_alone();
  test_a_stream_that_is_recorded_twice_is_waited_for_once();
  test_other_streams_and_what_is_outside_of_scopes_are_served_by_the_pool();
  test_each_open_scope_counts_what_others_allocate();
  test_threads_do_not_matter();
  test_threads_at_once();
  test_allocations_outlive_a_closed_arena();
  test_no_bytes();
  test_no_memory();
  test_frees_of_what_is_not_live();
  test_an_error_that_was_kept_is_thrown_once_at_the_next_chance();
  test_a_device_that_has_failed();
  test_a_record_of_what_is_not_live();
  test_scopes_of_another_stream();
  test_an_unsynchronized_free();
  test_an_overrun_is_reported_when_the_scope_has_closed();
  test_a_canary_is_looked_at_when_all_users_are_done();
  return failures() > 0;
}
