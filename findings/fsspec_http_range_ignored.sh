#!/usr/bin/env bash
# fsspec's HTTP file system returns a whole file for a range of it, where the server does not know ranges.
set -euo pipefail
exec "$(dirname "$0")/with_packages" fsspec==2026.9.0 aiohttp==3.14.5 <<'PYTHON'
import os
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import fsspec


class Quiet(SimpleHTTPRequestHandler):  # as `python -m http.server`, which ignores the header Range
    def log_message(self, *arguments):
        pass


folder = tempfile.mkdtemp()
with open(os.path.join(folder, "data"), "wb") as file:
    file.write(bytes(range(100)))
server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
threading.Thread(target=server.serve_forever, daemon=True).start()

print(f"fsspec {version('fsspec')}, aiohttp {version('aiohttp')}")
print("expected: cat_file(url, start=10, end=20) returns bytes 10 to 19, as every other file system does, or raises")
found = fsspec.filesystem("http").cat_file(f"http://127.0.0.1:{server.server_port}/data", start=10, end=20)
in_memory = fsspec.filesystem("memory")
in_memory.pipe("/data", bytes(range(100)))
print(f"observed: {len(found)} bytes, from byte {found[0]} on; in memory: {len(in_memory.cat_file('/data', 10, 20))}")
server.shutdown()
assert len(in_memory.cat_file("/data", 10, 20)) == 10
assert len(found) == 100, "this has changed"
PYTHON
