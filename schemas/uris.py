"""URIs as strings: parsed and refused before anything connects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from integrand.schemas.errors import SpecError

Scheme = Literal["file", "s3", "gs", "abfs"]
SCHEMES: tuple[str, ...] = get_args(Scheme)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Uri:
    """A parsed location: `scheme` is one of SCHEMES, `path` is absolute for files and bucket/key
    elsewhere.
    """

    scheme: str
    path: str

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        return f"{self.scheme}://{self.path}"

    def child(self, *names: str) -> Uri:
        folder = self.path.rstrip("/")
        return Uri(self.scheme, "/".join([folder, *names]))

    @property
    def name(self) -> str:
        path = self.path.rstrip("/")
        return path.rsplit("/", 1)[-1]


def parse_uri(text: str, *, base: str = "/", schemes: tuple[str, ...] = SCHEMES) -> Uri:
    """Parse one URI; a bare path is local and, if relative, taken from the folder `base`.

    Raises SpecError for chained (`::`) URLs, schemes outside `schemes`, user information and NUL
    bytes. fsspec opens 55 protocols and connects while parsing chained ones, so the string is
    judged first.
    """
    if "::" in text or "\x00" in text or not text.strip() or not _encodable(text):
        raise SpecError(
            f"uri {text!r}",
            expected="one plain path or URI",
            seen="a chained, empty or broken one",
            next_step="name the data itself: a path or " + ", ".join(f"{s}://" for s in schemes),
        )
    found = _SCHEME.match(text)
    scheme, rest = (found[1].lower(), found[2]) if found else ("file", text)
    if scheme not in schemes:
        raise SpecError(
            f"uri {text!r}",
            expected="one of " + ", ".join(f"{s}://" for s in schemes),
            seen=f"{scheme}://",
            next_step="copy the data to one of these stores",
        )
    if scheme == "file":
        return Uri("file", _tidy(str(PurePosixPath(base) / rest)))
    authority = rest.split("/", 1)[0]
    # abfs writes container@account, S3 access points are ARNs; a secret with a slash in it hides
    # its @ from here.
    if ("@" in authority and scheme != "abfs") or (
        ":" in authority and not authority.startswith("arn:")
    ):
        raise SpecError(
            "uri with user information",
            expected=f"{scheme}://bucket/key",
            next_step="put credentials into the environment, never into a spec",
        )
    if not rest.strip("/"):
        raise SpecError(f"uri {text!r}", expected=f"{scheme}://bucket/key", seen="no bucket")
    if {".", ".."} & set(rest.split("/")):
        raise SpecError(
            f"uri {text!r}",
            expected="the plain key of an object",
            seen="`.` or `..` in it",
            next_step="a key is no path: proxies resolve these as they like",
        )
    return Uri(scheme, rest.rstrip("/"))


def _tidy(path: str) -> str:
    """Without repeated slashes and `.`; `..` stays, as it may follow a symbolic link."""
    plain = str(PurePosixPath(path))
    return "/" + plain.lstrip("/")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: an argument or a file name that is not UTF-8
        return False
    return True
