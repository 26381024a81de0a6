"""Put faults into the arena's device half, one at a time; kernels of several streams must notice each of them.

python tests/csrc/arena/mutants.py [WORD]...      those whose name has a word; without: all

A fault is noticed when `test_device_kernels` fails.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mutation

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / "build" / "mutants" / "arena"
TREE = WORK / "tree"
PROGRAM = "test_device_kernels"
ALLOCATIONS = 40_000


@dataclass(frozen=True)
class Fault(mutation.Fault):
    @property
    def path(self) -> Path:
        return Path("csrc") / "arena" / f"{self.op}.cpp"


# The order of a free: the owner waits for the users, then has the memory back.
POOL_WAITS = "    wait_for_users(address, allocation.stream, on);\n    allocations_.erase(found);\n"
POOL_FREES = "    pool_.free(address, allocation.bytes, allocation.stream);\n"
ARENA_WAITS = "  const bool recorded = wait_for_users(address, arena->memory_.stream(), on);\n"
ARENA_FREES = "  arena->arena_.free(address, arena->debug_ && !recorded);\n"
ARENA_WAITS_LATE = """\
  const std::vector<Stream> users = users_[address];
  const bool recorded = on == arena->memory_.stream() || std::find(users.begin(), users.end(), on) != users.end();
  arena->arena_.free(address, arena->debug_ && !recorded);
  wait_for_users(address, arena->memory_.stream(), on);
"""

FAULTS = [
    Fault("device", "recorded streams not waited for", "      wait_for(user);", ""),
    Fault("device", "only the first recorded stream kept",
          "std::find(users.begin(), users.end(), stream) == users.end()", "users.empty()"),
    Fault("device", "no event where an unrecorded stream frees", "    wait_for(on);", ""),
    Fault("device", "the user waits for the owner", "wait(owner, pool_.driver().record(user))",
          "wait(user, pool_.driver().record(owner))"),
    Fault("device", "the event recorded on the owner", "pool_.driver().record(user)", "pool_.driver().record(owner)"),
    Fault("device", "pool memory freed before the event", POOL_WAITS + POOL_FREES, POOL_FREES + POOL_WAITS),
    Fault("device", "pool memory freed on the caller's stream", "allocation.bytes, allocation.stream)",
          "allocation.bytes, on)"),
    Fault("device", "poison before the event", ARENA_WAITS + ARENA_FREES, ARENA_WAITS_LATE),
    Fault("replay", "memory reused before it is freed", "      free = false;", ""),
    Fault("replay", "memory of a late free reused", "std::none_of(stragglers_.begin(), stragglers_.end(), overlaps);",
          "true;"),
    Fault("replay", "memory of a survivor reused", " && !meets_survivor(slot);", ";"),
    Fault("stream_memory", "poison on another stream", "fill(address, value, bytes, stream_)",
          "fill(address, value, bytes, stream_ + 1)"),
    Fault("stream_memory", "fallbacks allocated on another stream", "pool_.allocate(bytes + kSlack, stream_)",
          "pool_.allocate(bytes + kSlack, stream_ + 1)"),
    Fault("stream_memory", "fallbacks freed on another stream", "found->second, bytes + kSlack, stream_)",
          "found->second, bytes + kSlack, stream_ + 1)"),
]  # fmt: skip


def run() -> str | None:
    """Build and run the program; return what it notices."""
    folder = WORK / "build"
    options = ("-DBIMKERN_CUDA=OFF", "-DBIMKERN_BRIDGE=OFF", "-DCMAKE_BUILD_TYPE=None")
    configure = ["cmake", "-S", TREE, "-B", folder, "-G", "Ninja", *options]
    for command in (configure, ["ninja", "-C", folder, PROGRAM]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
    environment = {"BIMKERN_TEST_SEED": "100"} | os.environ
    command = [folder / PROGRAM, str(ALLOCATIONS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return "wrong data" if "mismatches_ == 0" in done.stderr else f"exit code {done.returncode}: {done.stderr}"


def main(words: list[str]) -> int:
    """Return 1 if a fault is missed, or if there are faults without one put in."""
    sources = [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/*"), *ROOT.glob("tests/csrc/**/*")]
    mutation.copy_tree(sources, ROOT, TREE)
    faults = mutation.chosen(FAULTS, words)
    if noticed := run():
        sys.exit(f"error: {noticed} without a fault: mend that first")
    return mutation.check(faults, TREE, lambda fault: run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
