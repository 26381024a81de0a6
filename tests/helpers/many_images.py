"""The start of a run on many images in tar files, all of them checked before: listed, checked, and frozen.

`python many_images.py fill|start FOLDER COUNT` does one of the two in a process of its own, and prints the CPU seconds
and the bytes of memory that it took.
"""

import json
import os
import resource
import sys
import tarfile
import time
from pathlib import Path

from bimkern.data import check as checks
from bimkern.data.check import check
from bimkern.data.file_checks import FileCheck
from bimkern.data.listing import list_images
from bimkern.data.sources.find import find_source
from bimkern.train.run_folder.dataset_manifest import freeze_dataset

SHARDS = 4


def fill(folder, count):
    """Write tar files of many members, and the cache of a check that decoded none of them."""
    name = f"a/class/of/some/length/{0:09d}.jpg"
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    (folder / "shards").mkdir()
    for shard in range(SHARDS):
        with (folder / "shards" / f"{shard}.tar").open("wb") as file:
            for i in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                header[: len(name)] = f"a/class/of/some/length/{i:09d}.jpg".encode()
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                file.write(header)
            file.write(bytes(1024))
    check_file = checks.check_file
    checks.check_file = _checked
    try:
        check(list_images(find_source(folder / "shards")), workers=0)
    finally:
        checks.check_file = check_file


def start(folder, begun=False, held_out=0.1):
    """Start a run in a folder, or resume it."""
    listing = list_images(find_source(folder / "shards"))
    (folder / "run").mkdir(exist_ok=True)
    found = check(listing, workers=0)
    return freeze_dataset(folder / "run", listing, found, begun=begun, max_bad_ratio=0.0, held_out=held_out)


def _checked(source, file, channels):
    size, time = source.stat(file)
    return FileCheck(size, time, f"{hash(file) & (2**64 - 1):016x}", 500, 375)


def main():
    what, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    before = time.process_time()
    if what == "fill":
        fill(folder, count)
    else:
        images = start(folder, begun=(folder / "run").exists(), held_out=0.0)
        assert len(images.images) == count
    seconds = time.process_time() - before
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


if __name__ == "__main__":
    os.environ["XDG_CACHE_HOME"] = f"{sys.argv[2]}/cache"
    main()
