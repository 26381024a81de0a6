"""Put faults into the CUDA kernels, one at a time; the random cases must notice each of them.

    make mutants [WORDS="..."]      those whose name has a word; without: all

A fault is noticed when `fuzz_host_cuda` fails: by a wrong result, or by a sanitizer; or, where it costs memory traffic
alone, when `python -m bench traffic` does. Every barrier of every kernel is removed once; other faults are listed in
FAULTS, where a new kernel adds its own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mutation

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / "build" / "mutants"
MEMORY, RACES, TRAFFIC = "address,undefined", "thread", "traffic"
ROUNDS = {MEMORY: 30, RACES: 6}
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Fault(mutation.Fault):
    check: str = MEMORY  # what must notice it: a sanitizer, or the count of traffic
    file: str = ""  # without: the kernel file of the op

    @property
    def path(self) -> Path:
        return Path("csrc") / (self.file or f"ops/{self.op}.cu")


FAULTS = [
    Fault("embed_visible", "image stride's alignment not asked", "args.image_stride % kPack == 0", "true"),
    Fault("embed_visible", "channel stride's alignment not asked", "args.channel_stride % kPack == 0", "true"),
    Fault("embed_visible", "row stride's alignment not asked", "args.row_stride % kPack == 0", "true"),
    Fault("embed_visible", "bias's alignment not asked", "is_packable(args.bias, 0)", "true"),
    Fault("gather_tokens", "image stride's alignment not asked",
          "is_packable(args.tokens, args.tokens_image_stride * kSize)", "true"),
    Fault("gather_tokens", "row stride's alignment not asked",
          "is_packable(args.tokens, args.tokens_token_stride * kSize)", "true"),
    Fault("gather_tokens", "result's alignment not asked", "is_packable(args.out, args.size.width * kSize)", "true"),
    Fault("hog", "histograms one word short", "launch.words()) * sizeof(float);",
          "launch.words()) * sizeof(float) - 4;"),
    Fault("hog", "border not mirrored", "x + kHogColumns == args.width ?", "x > args.width ?"),
    Fault("hog", "pixels of the lane behind the last of a strip", "unit.column < columns - 1", "true"),
    Fault("hog", "pixels of a lane of another warp", "lane > 0 && unit.column > 0", "unit.column > 0"),
    Fault("hog", "lanes beside each other are taken for pixels", "launch.unit == kHogColumns", "true"),
    Fault("hog", "image stride's alignment not asked", "args.image_stride % kHogColumns == 0", "true",
          file="ops/hog_plan.h"),
    Fault("hog", "channel stride's alignment not asked", "args.channel_stride % kHogColumns == 0", "true",
          file="ops/hog_plan.h"),
    Fault("hog", "a tile without the row below it", "launch.side - top) + 2;", "launch.side - top) + 1;"),
    Fault("hog", "a tile without the column in front of it", "i < columns + 2;", "i < columns + 1;"),
    Fault("hog", "a tile not mirrored on the left", "x == 0 ? first + 1 : first - 1", "first - 1"),
    Fault("hog", "a tile not mirrored on the right", "? last - 1 : last + 1", "? last + 1 : last + 1"),
    Fault("hog", "tiles one row short", "(tile.rows + 2) * tile.pitch; }", "(tile.rows + 1) * tile.pitch; }",
          file="ops/hog_plan.h"),
    Fault("random_keep", "every lane its own digit", "__shfl_sync(0xffffffffu, digit, owner)", "digit"),
    Fault("random_keep", "half of the mask", "__shfl_up_sync(0xffffffffu, through, step)",
          "__shfl_up_sync(0xffffu, through, step)"),
    Fault("random_keep", "counts not added atomically", "atomicAdd(&counts[slot(upper % kDigits)], 1u);",
          "counts[slot(upper % kDigits)] += 1u;", RACES),
    Fault("restore_tokens", "a column too many", "column < packs", "column <= packs"),
    Fault("restore_tokens", "a token too many", "token >= size.tokens", "token > size.tokens"),
    Fault("restore_tokens", "an image too many", "if (i < images)", "if (i <= images)"),
    Fault("restore_tokens", "positions' alignment not asked", "is_packable(args.pos, args.pos_token_stride * kSize)",
          "true"),
    Fault("restore_tokens", "mask token's alignment not asked", "is_packable(args.mask_token, 0)", "true"),
    Fault("restore_tokens", "an id left out of the search", "k >= size.kept", "k + 1 >= size.kept",
          file="ops/keep_cuda.h"),
    Fault("restore_tokens", "an id twice is none", "atomicExch(&own[row], kWrong)", "static_cast<void>(0)",
          file="ops/keep_cuda.h"),
    Fault("gather_tokens", "several masks read one image each", "image % (size.images / args.masks)", "image"),
    Fault("gather_tokens", "masks of an image taken for neighbors", "(group + mine * groups) * size.tokens",
          "(group * members + mine) * size.tokens"),
    Fault("gather_tokens", "positions without a barrier", "__syncwarp();", ";", RACES, file="ops/keep_cuda.h"),
    Fault("gather_tokens", "positions without a barrier before they are wrong", "__syncwarp();", ";", RACES,
          file="ops/keep_cuda.h", occurrence=2),
    Fault("scale_mask", "a value too many", "i >= squares.values", "i > squares.values"),
    Fault("embed_visible", "an id out of range is followed to a patch", "if (!is_token(id, size))", "if (false)"),
    Fault("embed_visible", "an id out of range is followed to a position", "if (is_token(id, size))", "if (true)"),
    Fault("restore_tokens", "positions of a block, without the barrier before", BARRIER, ";", RACES,
          file="ops/keep_cuda.h"),
    Fault("restore_tokens", "positions of a block, without the barrier behind", BARRIER, ";", RACES,
          file="ops/keep_cuda.h", occurrence=2),
    Fault("gather_tokens", "rows read element by element", "loaded[i] = row[first + i * kWarp];",
          "for (int j = 0; j < kPack; ++j) loaded[i].value[j] = row[first + i * kWarp].value[j];", TRAFFIC),
    Fault("restore_tokens", "rows never in packets", "const bool packed = is_packable(args.visible,",
          "const bool packed = false && is_packable(args.visible,", TRAFFIC),
    Fault("restore_tokens", "sums of the lanes without a gap", "kSpread = kWarp +", "kSpread = kWarp + 0 *", TRAFFIC),
    Fault("hog", "pixels beside a thread's own are loaded", "position.has_left ?", "false ?", TRAFFIC),
    Fault("hog", "norms of squares that are not there", "strip.squares * launch.across(i) *",
          "launch.squares * launch.across(i) *", TRAFFIC),
    Fault("hog", "warps begin where tiles do", "left % launch.side) % kWarp", "left % launch.side) % 1", TRAFFIC),
    Fault("hog", "squares of a tile in the same banks", "unit % 2 == 0 ? column + column / unit : column", "column",
          TRAFFIC, file="ops/hog_plan.h"),
]  # fmt: skip


def barriers() -> list[Fault]:
    """Return a fault for every barrier of every kernel."""
    found = []
    for path in sorted((ROOT / "csrc" / "ops").glob("*.cu")):
        for i in range(1, path.read_text().count(BARRIER) + 1):
            found.append(Fault(path.stem, f"without barrier {i}", BARRIER, ";", RACES, occurrence=i))
    return found


def copy_tree() -> None:
    """Copy what is compiled and run."""
    compiled = [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/*"), *ROOT.glob("tests/csrc/**/*")]
    run = [*ROOT.glob("bench/**/*.py"), ROOT / "bench" / "results" / "traffic.csv"]
    mutation.copy_tree([*compiled, *run], ROOT, WORK / "tree")


def build(sanitizer: str) -> Path:
    """Build the random cases from the copied tree; return the program."""
    folder = WORK / sanitizer
    if not (folder / "build.ninja").exists():
        options = ("-DBIMKERN_CUDA=OFF", "-DBIMKERN_BRIDGE=OFF", "-DCMAKE_BUILD_TYPE=None")
        subprocess.run(
            ["cmake", "-S", WORK / "tree", "-B", folder, "-G", "Ninja", f"-DBIMKERN_SANITIZE={sanitizer}", *options],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    done = subprocess.run(["ninja", "-C", folder, "fuzz_host_cuda"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout)
    return folder / "tests" / "csrc" / "host_cuda" / "fuzz_host_cuda"


def run(check: str, op: str) -> str | None:
    """Run the random cases of an op, or count its traffic; return what they notice."""
    tree = WORK / "tree"
    if check == TRAFFIC:
        command = [sys.executable, "-m", "bench", "traffic", op]
    else:
        command = [build(check), str(ROUNDS[check]), os.environ.get("BIMKERN_TEST_SEED", "100"), op]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # of bimkern; bench is the tree's
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == 0:
        return None
    if check == TRAFFIC and done.returncode != 1:  # nothing was counted
        sys.exit(done.stderr)
    marks = {
        "MISMATCH": "wrong result", "data race": "race", "AddressSanitizer": "bad address",
        "runtime error": "undefined", " -> ": "traffic", "not written yet": "uninitialized",
    }  # fmt: skip
    noticed = [name for mark, name in marks.items() if mark in done.stdout + done.stderr]
    return " and ".join(noticed) or f"exit code {done.returncode}"


def main(words: list[str]) -> int:
    """Return 1 if a fault is missed, or if there are faults without one put in."""
    faults = mutation.chosen(FAULTS + barriers(), words)
    copy_tree()
    for check, op in sorted({(fault.check, fault.op) for fault in faults}):
        if noticed := run(check, op):
            sys.exit(f"error: {op}, {check}: {noticed} without a fault: mend that first")
    faults.sort(key=lambda fault: (fault.check, fault.path))
    return mutation.check(faults, WORK / "tree", lambda fault: run(fault.check, fault.op))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
