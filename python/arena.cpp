// The Python module bimkern.arena._arena: the arenas of host and device, and plans as plain tuples. Contract:
// csrc/arena.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <tuple>

#include "arena/error.h"
#include "device_hook.h"
#include "host_hook.h"
#include "rerun.h"

namespace bimkern {
namespace {

namespace py = pybind11;

// A plan as Python sees it; -1 stands for the end of an allocation that was live when its step ended.
using ScopeTuple = std::tuple<std::string, int64_t, int64_t, int32_t, int32_t>;  // name, begin, end, first, last
using AllocationTuple = std::tuple<int32_t, int64_t, int64_t, int64_t>;          // scope, bytes, begin, end
using TraceTuple = std::tuple<std::vector<ScopeTuple>, std::vector<AllocationTuple>, int64_t>;  // ..., ticks
// Trace, alignment, padding, offsets, peak, bound.
using PlanTuple = std::tuple<TraceTuple, int64_t, int64_t, std::vector<int64_t>, int64_t, int64_t>;

Trace from_tuple(const TraceTuple& tuple) {
  const auto& [scopes, allocations, ticks] = tuple;
  Trace trace;
  trace.ticks = ticks;
  for (const auto& [name, begin, end, first, last] : scopes) {
    trace.scopes.push_back({name, begin, end, first, last});
  }
  for (const auto& [scope, bytes, begin, end] : allocations) {
    trace.allocations.push_back({bytes, begin, end == -1 ? kForever : end, scope});
  }
  return trace;
}

TraceTuple to_tuple(const Trace& trace) {
  std::vector<ScopeTuple> scopes;
  std::vector<AllocationTuple> allocations;
  for (const ScopeSpan& scope : trace.scopes) {
    scopes.emplace_back(scope.name, scope.begin, scope.end, scope.first, scope.last);
  }
  for (const Allocation& allocation : trace.allocations) {
    allocations.emplace_back(allocation.scope, allocation.bytes, allocation.begin,
                             allocation.end == kForever ? -1 : allocation.end);
  }
  return {std::move(scopes), std::move(allocations), trace.ticks};
}

Plan from_tuple(const PlanTuple& tuple) {
  const auto& [trace, alignment, padding, offsets, peak, bound] = tuple;
  return {from_tuple(trace), alignment, padding, offsets, peak, bound};
}

PlanTuple to_tuple(const Plan& plan) {
  return {to_tuple(plan.trace), plan.alignment, plan.padding, plan.offsets, plan.peak, plan.bound};
}

template <typename AnyArena>
py::dict statistics(AnyArena& any) {
  const Statistics s = any.arena().statistics();
  const OtherAllocations others = any.other_allocations();
  using namespace py::literals;
  return py::dict("steps"_a = s.steps, "diverged_steps"_a = s.diverged_steps, "plans"_a = s.plans,
                  "refused_plans"_a = s.refused_plans, "planned"_a = s.planned, "smaller"_a = s.smaller,
                  "still_in_use"_a = s.still_in_use, "late"_a = s.late, "unplanned"_a = s.unplanned,
                  "leaked"_a = s.leaked, "overruns"_a = s.overruns, "unsynchronized_frees"_a = s.unsynchronized_frees,
                  "upstream_calls"_a = s.upstream_calls, "upstream_calls_last_step"_a = s.upstream_calls_last_step,
                  "live_allocations"_a = s.live_allocations, "planned_bytes"_a = s.planned_bytes,
                  "fallback_bytes"_a = s.fallback_bytes, "planned_live_peak"_a = s.planned_live_peak,
                  "planned_reach"_a = s.planned_reach, "fallback_peak"_a = s.fallback_peak,
                  "reserved_bytes"_a = s.reserved_bytes, "other_allocations"_a = others.count,
                  "other_bytes"_a = others.bytes);
}

template <typename AnyArena>
std::vector<std::tuple<uintptr_t, int64_t, std::string, int32_t>> leaks(AnyArena& any) {
  std::vector<std::tuple<uintptr_t, int64_t, std::string, int32_t>> allocations;
  for (const Leak& allocation : any.arena().leaks()) {
    allocations.emplace_back(reinterpret_cast<uintptr_t>(allocation.address), allocation.bytes, allocation.scope,
                             allocation.order);
  }
  return allocations;
}

const char* name_of(Fault fault) {
  switch (fault) {
    case Fault::kDoubleFree:
      return "double_free";
    case Fault::kForeignPointer:
      return "foreign_pointer";
    case Fault::kWrongOwner:
      return "wrong_owner";
    case Fault::kScope:
      return "scope";
    case Fault::kBadSize:
      return "bad_size";
    case Fault::kNoMemory:
      return "no_memory";
    case Fault::kOverrun:
      return "overrun";
    case Fault::kUnsynchronizedFree:
      return "unsynchronized_free";
    case Fault::kBadPlan:
      return "bad_plan";
  }
  return "unknown";
}

// The Python class exists without this module, too.
void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ArenaError& error) {
    const py::object type = py::module_::import("bimkern.arena.errors").attr("ArenaError");
    PyErr_SetObject(type.ptr(), py::make_tuple(error.what(), name_of(error.fault())).ptr());
  }
}

template <typename AnyArena, typename... Arguments>
void bind_arena(py::module_& module, const char* name) {
  py::class_<AnyArena>(module, name)
      .def(py::init<Arguments...>())
      .def("open", &AnyArena::open)
      .def("close", &AnyArena::close)
      .def("has_plan", [](AnyArena& any) { return any.arena().has_plan(); })
      .def("plan", [](AnyArena& any) { return to_tuple(any.arena().plan()); })
      .def("adopt", [](AnyArena& any, const PlanTuple& plan) { any.arena().adopt(from_tuple(plan)); })
      .def("statistics", &statistics<AnyArena>)
      .def("leaks", &leaks<AnyArena>);
}

}  // namespace
}  // namespace bimkern

PYBIND11_MODULE(_arena, module) {
  using namespace bimkern;
  module.attr("torch_version") = TORCH_VERSION;
  module.attr("host_alignment") = kHostAlignment;
  module.attr("device_alignment") = kDeviceAlignment;
  module.attr("with_cuda") = static_cast<bool>(BIMKERN_HAS_CUDA);
  py::register_local_exception_translator(&translate);
  module.def("make_plan", [](const TraceTuple& trace, int64_t alignment, int64_t padding) {
    return to_tuple(make_plan(from_tuple(trace), alignment, padding));
  });
  module.def("check_plan", [](const PlanTuple& plan) { check(from_tuple(plan)); });
  py::class_<Rerun>(module, "Rerun")
      .def(py::init([](const TraceTuple& trace) { return Rerun(from_tuple(trace)); }))
      .def("step", &Rerun::step, py::arg("arena") = nullptr);
  bind_arena<HostArena, bool>(module, "HostArena");
  bind_arena<DeviceArena, int, bool>(module, "DeviceArena");
  // Before torch uses the GPU: throws if the arena cannot manage its memory.
  module.def("claim_device", [](int index) { device_memory(index); });
  module.def("device_bytes", [](int index) {
    const Device& memory = device_memory(index);
    return std::make_pair(memory.live_bytes(), memory.peak_bytes());
  });
}
