"""Put faults into the CUDA kernels, one at a time; the random cases must notice each of them.

    make mutants [WORDS="..."]      those whose name has a word; without: all

A fault is noticed when `fuzz_host_cuda` fails: by a wrong result, or by a sanitizer. Every barrier of every kernel is
removed once; other faults are listed in FAULTS, where a new kernel adds its own.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mutation

ROOT = Path(__file__).resolve().parents[3]
WORK = ROOT / "build" / "mutants"
MEMORY, RACES = "address,undefined", "thread"
ROUNDS = {MEMORY: 30, RACES: 6}
BARRIER = "__syncthreads();"


@dataclass(frozen=True)
class Fault(mutation.Fault):
    sanitizer: str = MEMORY
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
    Fault("hog", "histograms one word short", "launch.spread * sizeof(float);", "launch.spread * sizeof(float) - 4;"),
    Fault("hog", "border not mirrored", "x + kColumns == width ? row[kColumns - 1] : pixel(from[x + kColumns])",
          "pixel(from[x + kColumns])"),
    Fault("hog", "image stride's alignment not asked", "args.image_stride % kColumns == 0", "true"),
    Fault("hog", "channel stride's alignment not asked", "args.channel_stride % kColumns == 0", "true"),
    Fault("random_keep", "every lane its own digit", "__shfl_sync(0xffffffffu, digit, owner)", "digit"),
    Fault("random_keep", "half of the mask", "__shfl_up_sync(0xffffffffu, through, step)",
          "__shfl_up_sync(0xffffu, through, step)"),
    Fault("random_keep", "counts not added atomically", "atomicAdd(&counts[upper % kDigits], 1u);",
          "counts[upper % kDigits] += 1u;", RACES),
    Fault("restore_tokens", "a column too many", "column < packs", "column <= packs"),
    Fault("restore_tokens", "a row too many", "row >= size.images * rows", "row > size.images * rows"),
    Fault("restore_tokens", "positions' alignment not asked", "is_packable(args.pos, args.pos_token_stride * kSize)",
          "true"),
    Fault("restore_tokens", "mask token's alignment not asked", "is_packable(args.mask_token, 0)", "true"),
    Fault("restore_tokens", "an id left out of the search", "k < size.kept", "k + 1 < size.kept",
          file="ops/keep_cuda.h"),
    Fault("restore_tokens", "every lane its own place",
          "__shfl_sync(kAll, place, __ffs(static_cast<int>(holders)) - 1)", "place", file="ops/keep_cuda.h"),
    Fault("gather_tokens", "places without a barrier", "__syncwarp();", ";", RACES, file="ops/keep_cuda.h"),
    Fault("scale_mask", "a value too many", "i >= count", "i > count"),
]  # fmt: skip


def barriers() -> list[Fault]:
    """Return a fault for every barrier of every kernel."""
    found = []
    for path in sorted((ROOT / "csrc" / "ops").glob("*.cu")):
        for i in range(1, path.read_text().count(BARRIER) + 1):
            found.append(Fault(path.stem, f"without barrier {i}", BARRIER, ";", RACES, occurrence=i))
    return found


def copy_tree() -> None:
    """Copy what is compiled; files that are equal keep their time, so that they are not compiled again."""
    for source in [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/*"), *ROOT.glob("tests/csrc/**/*")]:
        copy = WORK / "tree" / source.relative_to(ROOT)
        if source.is_file() and not (copy.exists() and copy.read_bytes() == source.read_bytes()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


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


def run(sanitizer: str, op: str) -> str | None:
    """Run the random cases of an op; return what they notice."""
    command = [build(sanitizer), str(ROUNDS[sanitizer]), os.environ.get("BIMKERN_TEST_SEED", "100"), op]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return None
    marks = {
        "MISMATCH": "wrong result", "data race": "race", "AddressSanitizer": "bad address", "runtime error": "undefined"
    }  # fmt: skip
    noticed = [name for mark, name in marks.items() if mark in done.stdout + done.stderr]
    return " and ".join(noticed) or f"exit code {done.returncode}"


def main(words: list[str]) -> int:
    """Return 1 if a fault is missed, or if there are faults without one put in."""
    faults = mutation.chosen(FAULTS + barriers(), words)
    copy_tree()
    for sanitizer, op in sorted({(fault.sanitizer, fault.op) for fault in faults}):
        if noticed := run(sanitizer, op):
            sys.exit(f"error: {op}, {sanitizer}: {noticed} without a fault: mend that first")
    faults.sort(key=lambda fault: (fault.sanitizer, fault.path))
    return mutation.check(faults, WORK / "tree", lambda fault: run(fault.sanitizer, fault.op))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
