"""`python -m bench.native [DEVICE]`: exit 1 where an op that has a kernel would run on something else."""

import sys
from collections.abc import Sequence

from bimkern.ops import backends

WITHOUT_KERNEL = ("match_loss", "match_predict")  # plain torch on a GPU


def main(arguments: Sequence[str]) -> int:
    device = arguments[0] if arguments else "cuda"
    wrong = 0
    for op, served in backends().items():
        chosen = served[device]
        if op not in WITHOUT_KERNEL and chosen.backend not in ("native", "triton"):
            wrong += 1
            print(f"{op}: {chosen.backend} on {device}, expected a kernel: {chosen.reason}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
