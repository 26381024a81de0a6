"""A local HTTP server of a folder, which can fail on purpose and answers ranges unless it is told to ignore them."""

import re
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path


class Server(ThreadingHTTPServer):
    """It serves a folder.

    `failing` are paths that it answers with an error, once for every time they are in; `asked` are path and range of
    all requests for content.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.failing, self.asked, self.answers_ranges = [], [], True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self):
        """The paths that were asked for."""
        return [path for path, _ in self.asked]


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        if self.path in self.server.failing:
            self.server.failing.remove(self.path)
            self.send_error(503)
        elif wanted and self.server.answers_ranges and not self.path.endswith("/"):
            self._send_range(*re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups())
        else:
            super().do_GET()

    def _send_range(self, first, last):
        path = Path(self.translate_path(self.path))
        content = path.read_bytes()
        part = content[int(first) : int(last) + 1 if last else None]
        if not part:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        self.copyfile(BytesIO(part), self.wfile)

    def end_headers(self):
        if self.server.answers_ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder):
    """Serve a folder inside the context, in a thread."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
