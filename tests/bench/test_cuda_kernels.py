"""The table of kernels is read off what ptxas says."""

from bench.compiled import cuda_kernels as kernels
from bench.compiled.cuda_kernels import Kernel

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_80'
ptxas info    : Function properties for _Z4copyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 440 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_100a'
ptxas info    : Function properties for _Z4copyPf
    8 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 28 registers, used 0 barriers, 440 bytes cmem[0]
"""


def test_every_figure_is_read():
    same = {"file": "a.cu", "name": "_Z4copyPf"}
    assert kernels.parse(REPORT, "a.cu") == [
        Kernel(arch=80, registers=32, shared=1024, spills=0, **same),
        Kernel(arch=100, registers=28, shared=0, spills=20, **same),
    ]


def test_the_table_puts_architectures_side_by_side():
    found = [
        Kernel(file="a.cu", name="_Z4copyPf", arch=arch, registers=arch, shared=0, spills=0)
        for arch in kernels.ARCHITECTURES
    ]
    *_, line = kernels.table(found).splitlines()
    assert line.startswith("| a.cu: `")
    assert line.endswith("| 80 / 0 / 0 | 90 / 0 / 0 | 100 / 0 / 0 |")
