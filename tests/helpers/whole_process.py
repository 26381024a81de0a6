"""What a forked process does, from its beginning to its end."""

import os
import sys
import traceback
from contextlib import suppress


def end_with(function):
    """Call a function, and end this process with the exit code that Python would."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
