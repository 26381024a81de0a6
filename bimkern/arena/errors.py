"""What an arena raises."""

from bimkern.errors import BimkernError


class ArenaError(RuntimeError):
    """A misuse of an arena. `fault` names its kind: scope, wrong_owner, overrun, bad_plan, no_memory, ..."""

    def __init__(self, text: str, fault: str) -> None:
        super().__init__(text)
        self.fault = fault


class ArenaUnavailable(BimkernError, RuntimeError):
    """There is no arena here; the message is the reason."""
