"""The server and the account that an address names, which many file systems leave out of their paths."""

from dataclasses import dataclass
from typing import Any, Self

from bimkern.data.addresses import without_passwords

_SECRETS = ("pass", "token", "key", "secret", "credential")  # in the names of options


@dataclass(frozen=True)
class Authority:
    """What the addresses of one file system have in common."""

    options: dict[str, Any]  # with which fsspec connects to it, as the address says
    before: str  # of an address: all before the path, without a password

    @classmethod
    def of(cls, file_system: Any, url: str) -> Self:
        """Return that of an address, given its file system or the class of it."""
        options: dict[str, Any] = file_system._get_kwargs_from_urls(url)
        scheme, _, rest = (without_passwords(url) if "host" in options else url).partition("://")
        return cls(options, f"{scheme}://{rest.partition('/')[0]}")

    @property
    def public(self) -> dict[str, Any]:
        """The options that are no secrets."""
        return {name: value for name, value in self.options.items() if not any(word in name for word in _SECRETS)}

    def address(self, path: str) -> str:
        """Return the address of a path, as the file system calls it, without a password."""
        if "://" in path:
            return without_passwords(path)
        path = path.lstrip("/")
        if "host" in self.options:
            return f"{self.before}/{path}"
        scheme, _, name = self.before.partition("://")
        container, at, _ = name.partition("@")  # as of Azure, whose account alone is left out of paths
        first, slash, rest = path.partition("/")
        return f"{self.before}{slash}{rest}" if at and first == container else f"{scheme}://{path}"
