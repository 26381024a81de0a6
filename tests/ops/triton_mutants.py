"""Put faults into the Triton kernels, one at a time; the random cases must notice each of them.

python tests/ops/triton_mutants.py [WORD]...      those whose name has a word; without: all
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mutation

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "mutants" / "triton"
KERNELS = Path("bimkern") / "ops" / "_triton"
ROUNDS = 40


@dataclass(frozen=True)
class Fault(mutation.Fault):
    file: str = ""  # without: that of the op

    @property
    def path(self) -> Path:
        return KERNELS / f"{self.file or self.op}.py"


# Only one of the two left as it is would be converted by Triton, to the dtype of the other.
CONVERTED = """\
        p = tl.load(pred_rows[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)
        t = tl.load(target_rows[:, None] + columns[None, :], mask=inside, other=0).to(WIDE)
"""
UNCONVERTED = CONVERTED, CONVERTED.replace(".to(WIDE)", "")

FAULTS = [
    Fault("group_attention", "a channel too many", "(columns < width)", "(columns < width + 1)"),
    Fault("group_attention", "a channel too many is written", "(columns < width)", "(columns < width + 1)",
          occurrence=2),
    Fault("group_attention", "a member too many", "mask=slot < size", "mask=slot < size + 1"),
    Fault("group_attention", "the plan of another image", "tl.where(plans == 1, 0, image)", "0"),
    Fault("group_attention", "windows not told apart", "query_windows[:, None] == key_windows[None, :]",
          "(query_windows[:, None] >= 0) & (key_windows[None, :] >= 0)"),
    Fault("group_attention", "bias of the opposite position", "query_positions[:, None] - key_positions[None, :]",
          "key_positions[None, :] - query_positions[:, None]"),
    Fault("group_attention", "bias of the first head", "index * heads + head,", "index * heads,"),
    Fault("group_attention", "sums of other blocks do not fade", "total * faded + ", "total + "),
    Fault("group_attention", "sums of the first block alone", "total * faded + ", ""),
    Fault("group_attention", "a block without the query's window",
          'tl.where(now_largest == float("-inf"), 0, now_largest)', "now_largest"),
    Fault("group_attention", "gradient of the scale left out", "dq * scale", "dq"),
    Fault("group_attention", "gradient of the scale left out for keys", "dk * scale", "dk"),
    Fault("group_attention", "slopes without their mean", " - along[:, None])", ")"),
    Fault("group_attention", "means of slopes are not kept", "along_rows, sizes, place, queries, along)",
          "along_rows, sizes, place, queries, none)"),
    Fault("group_attention", "gradient of values from slopes", "tl.trans(weights), g", "tl.trans(slopes), g"),
    Fault("group_attention", "strides of qkv for the gradient", "grad + head * width, grad_strides",
          "grad + head * width, strides"),
    Fault("group_attention", "the table of another head", "table_sums + head * relative", "table_sums"),
    Fault("masked_loss", "a column too many", "(columns < length)", "(columns < length + 1)"),
    Fault("masked_loss", "a row too many", "mask=rows < num_rows", "mask=rows < num_rows + 1"),
    Fault("masked_loss", "tokens of weight zero are read", "counts[:, None] & (columns", "(columns"),
    Fault("masked_loss", "tokens of weight zero are read backwards", "counts[:, None] & (columns",
          "exists[:, None] & (columns", occurrence=2),
    Fault("masked_loss", "strides of the prediction for the target", "row_starts(target, target_strides",
          "row_starts(target, pred_strides"),
    Fault("masked_loss", "difference in the dtype of the inputs", *UNCONVERTED),
    Fault("masked_loss", "difference in the dtype of the inputs, backwards", *UNCONVERTED, occurrence=2),
    Fault("masked_loss", "mean over a tile's columns", "(errors / length)", "(errors / COLUMNS)"),
    Fault("masked_loss", "mean over P left out backwards", "tl.where(d == 0, 1, d) * length", "tl.where(d == 0, 1, d)"),
    Fault("masked_loss", "half the slope", "slope = 2 * difference", "slope = difference"),
    Fault("masked_loss", "result written beyond its rows", "mask=exists[:, None] & (columns", "mask=(columns"),
    Fault("masked_loss", "partial sums not masked", "mask=positions < count", "mask=positions < count + 1"),
    Fault("masked_loss", "a denominator of zero backwards", "w = tl.where(d == 0, 0, w)", "w = w"),
    Fault("masked_loss", "alignment without the strides", "*starts, *strides)", "*starts)", file="rows"),
    Fault("masked_loss", "alignment without the start", "*starts, *strides)", "*strides)", file="rows"),
    Fault("masked_loss", "alignment without the length", "*(x.shape[-1] for x in rows), ", "", file="rows"),
    Fault("masked_pixel_loss", "patches of weight zero are read", "tl.where(w != 0, length, 0)", "length"),
    Fault("masked_pixel_loss", "patches of weight zero are read backwards", "tl.where(w != 0, length, 0)", "length",
          occurrence=2),
    Fault("masked_pixel_loss", "alignment of nothing", "alignment(pred)", "8"),
    Fault("pixel_targets", "a value too many", "tl.arange(0, BLOCK), values, mask=inside",
          "tl.arange(0, BLOCK), values, mask=tl.arange(0, BLOCK) <= length"),
    Fault("pixel_targets", "biased variance", "/ (length - 1)", "/ length", file="pixels"),
    Fault("pixel_targets", "pixels not converted", "other=0).to(WIDE)", "other=0)", file="pixels"),
    Fault("pixel_targets", "row and column of a pixel exchanged", "y.to(tl.int64) * row_stride",
          "x.to(tl.int64) * row_stride", file="pixels"),
    Fault("pixel_targets", "mean of another channel", "tl.load(mean + c,",
          "tl.load(mean + (c + 1) % channels,", file="pixels"),
    Fault("pixel_targets", "bytes not divided", "FULL * tl.load(std", "tl.load(std", file="pixels"),
    Fault("pixel_targets", "statistics of the first channel alone", "for c in range(channels):", "for c in range(1):",
          file="pixels"),
]  # fmt: skip


def run(op: str) -> str | None:
    """Run the random cases of an op in the copied tree; return what they notice: a wrong result, or a crash.

    Raises:
        SystemExit: they fail otherwise: the kernel does not compile.
    """
    seed, stop_after = os.environ.get("BIMKERN_TEST_SEED", "100"), "1"
    command = [sys.executable, "tests/ops/fuzz_triton.py", str(ROUNDS), seed, op, stop_after]
    environment = os.environ | {"PYTHONPATH": str(TREE), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    wrong = [line for line in done.stderr.splitlines() if line.startswith("AssertionError: ")]
    return wrong[0] if wrong else sys.exit(done.stderr)


def main(words: list[str]) -> int:
    """Return 1 if a fault is missed, or if there are faults without one put in."""
    faults = mutation.chosen(FAULTS, words)
    for folder in ("bimkern", "bench", "tests/ops"):
        shutil.copytree(ROOT / folder, TREE / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for op in sorted({fault.op for fault in faults}):
        if noticed := run(op):
            sys.exit(f"error: {op}: {noticed} without a fault: mend that first")
    return mutation.check(faults, TREE, lambda fault: run(fault.op))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
