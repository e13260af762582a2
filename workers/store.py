"""The only door to object storage: local files through the operating system, object stores through fsspec.

Everything is addressed by a parsed Uri. Missing objects raise FileNotFoundError and a lost race to create
raises FileExistsError; every other failure of a store becomes a DataError (this place cannot be used), a
TransientError (it may work later) or an IntegrityError (the object changed while it was read).
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import fsspec
from fsspec.utils import glob_translate

from integrand.schemas.errors import DataError, IntegrandError, IntegrityError, SpecError, TransientError
from integrand.schemas.uris import SCHEMES, Uri, parse_uri

_PACKAGES = {"s3": ("s3fs", "integrand[s3]"), "gs": ("gcsfs", "gcsfs"), "abfs": ("adlfs", "adlfs")}
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_PRECONDITION = ("PreconditionFailed", "412")
_CONFLICT = ("ConditionalRequestConflict", "OperationAborted", "409")
_ANONYMOUS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_UNUSABLE = (errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS, errno.ENOTSUP,
             getattr(errno, "EREMCHG", errno.EINVAL))  # fmt: skip
_READ_AHEAD = 1 << 20


@dataclass(frozen=True)
class Access:
    """The operator's storage settings. They never come from a job spec."""

    endpoint_url: str | None = None
    schemes: tuple[str, ...] = SCHEMES
    buckets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One stored file: `size` in bytes, `etag` from object stores, `mtime_ns` from local files."""

    uri: Uri
    size: int
    etag: str | None = None
    mtime_ns: int | None = None


Entries = list[Entry]


class Store:
    """Reads, lists and commits objects. Picklable, and safe across threads and forks."""

    def __init__(self, access: Access = Access()) -> None:
        self.access = access
        self._places: dict[tuple[int, str], _Place] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Access]]:
        return Store, (self.access,)

    def parse(self, text: str, base: str = "/") -> Uri:
        """A URI that the operator allows; SpecError for any other. Nothing connects."""
        uri = parse_uri(text, base=base, schemes=self.access.schemes)
        bucket = uri.path.split("/", 1)[0]
        if uri.scheme != "file" and self.access.buckets and bucket not in self.access.buckets:
            raise SpecError(f"uri {text!r}", expected=f"one of the buckets {', '.join(self.access.buckets)}",
                            seen=bucket, next_step="ask the operator to allow the bucket")  # fmt: skip
        return uri

    def read(self, uri: Uri) -> bytes:
        """The whole object."""
        with _explained(uri):
            return self._place(uri).read(uri.path)

    def read_tail(self, uri: Uri, size: int, count: int) -> bytes:
        """The last `count` bytes of an object of `size` bytes, or all of a shorter one."""
        with _explained(uri):
            return self._place(uri).read_range(uri.path, max(0, size - count), size)

    def open(self, uri: Uri, *, etag: str | None = None) -> io.RawIOBase:
        """A seekable binary file. IntegrityError if its ETag is not `etag`, or if it changes while read."""
        with _explained(uri):
            file, seen = self._place(uri).open(uri.path)
        if etag is not None and seen != etag:
            raise IntegrityError(str(uri), expected=f"ETag {etag}", seen=str(seen), next_step="plan again")
        return _Reader(uri, file)

    def create(self, uri: Uri, data: bytes, *, scratch: Uri | None = None) -> None:
        """Write the object whole, once; local bytes go into the folder `scratch` first.

        FileExistsError if it is there already, maybe from a lost answer to this very write: read it back.
        """
        with _explained(uri, writing=True):
            self._place(uri).create(uri.path, data, scratch.path if scratch else None)

    def replace(self, uri: Uri, data: bytes) -> None:
        """Write the object, whatever was there; readers see the old bytes or the new ones."""
        with _explained(uri, writing=True):
            self._place(uri).replace(uri.path, data)

    def delete(self, uri: Uri) -> None:
        """Remove the object, if it is there."""
        with _explained(uri), suppress(FileNotFoundError):
            self._place(uri).delete(uri.path)

    def info(self, uri: Uri) -> Entry:
        """Size and version of one object; FileNotFoundError for folders too."""
        with _explained(uri):
            return self._place(uri).info(uri)

    def exists(self, uri: Uri) -> bool:
        try:
            self.info(uri)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: Uri, *, depth: int | None = None) -> Entries:
        """Every file below a folder, at most `depth` levels down, sorted by path; [] below a missing one."""
        with _explained(folder):
            return sorted(self._place(folder).list(folder, depth), key=lambda entry: entry.uri.path)

    def expand(self, pattern: Uri) -> Entries:
        """The files that a file, folder or glob (`*`, `?`, `[...]`, `**`) stands for, sorted by path.

        Hidden names (`_x`, `.x`) below the folder, or below the fixed part of the glob, are left out, unless
        the glob spells one itself. An existing file is meant literally, whatever characters its name has.
        """
        with suppress(FileNotFoundError):
            return [self.info(pattern)]
        fixed, rest = _split_glob(pattern)
        if not rest:
            return _visible(pattern, self.list(pattern))
        depth = None if any("**" in name for name in rest) else len(rest)
        matches = re.compile(glob_translate(pattern.path)).match
        found = [entry for entry in self.list(fixed, depth=depth) if matches(entry.uri.path)]
        return found if any(_hidden(name) for name in rest) else _visible(fixed, found)

    def prove_creates(self, root: Uri) -> None:
        """Create one probe twice. DataError if the place cannot be written or the second create succeeds."""
        probe = root.child(f"_probe-{uuid4().hex}")
        self._creates(probe)  # False only after a lost answer: nobody else has this name
        twice = self._creates(probe)
        with suppress(DataError):  # a place that denies deletes can commit all the same
            self.delete(probe)
        if twice:
            raise DataError(str(root), expected="a store that refuses to create an object twice",
                            seen="both creates of one probe succeeded",
                            next_step="use a store with conditional writes: S3, GCS, Azure")  # fmt: skip

    def _creates(self, uri: Uri) -> bool:
        try:
            self.create(uri, b"probe")
        except FileExistsError:
            return False
        return True

    def _place(self, uri: Uri) -> _Place:
        if uri.scheme == "file":
            return _Files()
        key = (os.getpid(), uri.scheme)
        if key not in self._places:
            # Two threads may both build one: setdefault lets them agree, and no lock is held across a fork.
            self._places.setdefault(key, _Objects(_filesystem(uri.scheme, self.access)))
        return self._places[key]


class _Place(Protocol):
    """What a kind of storage must do; `path` is Uri.path."""

    def read(self, path: str) -> bytes: ...
    def read_range(self, path: str, start: int, stop: int) -> bytes: ...
    def open(self, path: str) -> tuple[Any, str | None]: ...
    def create(self, path: str, data: bytes, scratch: str | None) -> None: ...
    def replace(self, path: str, data: bytes) -> None: ...
    def delete(self, path: str) -> None: ...
    def info(self, uri: Uri) -> Entry: ...
    def list(self, folder: Uri, depth: int | None) -> Iterable[Entry]: ...


class _Files:
    """Local files. fsspec's create is exists-then-write; a hard link is exclusive and never half-written."""

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def open(self, path: str) -> tuple[Any, None]:
        return open(path, "rb"), None

    def create(self, path: str, data: bytes, scratch: str | None) -> None:
        with _scratch_file(path, data, scratch) as temporary:
            os.link(temporary, path)

    def replace(self, path: str, data: bytes) -> None:
        with _scratch_file(path, data, None) as temporary:
            os.replace(temporary, path)

    def delete(self, path: str) -> None:
        os.unlink(path)

    def info(self, uri: Uri) -> Entry:
        found = os.stat(uri.path)
        if not os.path.isfile(uri.path):
            raise FileNotFoundError(errno.ENOENT, "not a file", uri.path)
        return Entry(uri, found.st_size, mtime_ns=found.st_mtime_ns)

    def list(self, folder: Uri, depth: int | None) -> Iterator[Entry]:
        top = folder.path.rstrip("/")
        for place, folders, names in os.walk(top or "/", onerror=_unless_missing):
            level = place[len(top) :].count("/") + 1 if place != "/" else 1
            if depth is not None and level >= depth:
                folders.clear()
            for name in names:
                with suppress(FileNotFoundError):  # deleted since, or a dangling link
                    yield self.info(Uri("file", f"{place.rstrip('/')}/{name}"))


class _Objects:
    """An object store behind fsspec, which all of its filesystems share as one synchronous face."""

    def __init__(self, filesystem: Any) -> None:
        self.filesystem = filesystem

    def read(self, path: str) -> bytes:
        return bytes(self.filesystem.cat_file(path))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        return bytes(self.filesystem.cat_file(path, start=start, end=stop))

    def open(self, path: str) -> tuple[Any, str | None]:
        file = self.filesystem.open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead")
        return file, _etag(file.details)

    def create(self, path: str, data: bytes, scratch: str | None) -> None:
        try:
            self.filesystem.pipe_file(path, data, mode="create")
        except OSError as error:
            if _code(error) not in _CONFLICT:
                raise
            # S3 answers 409 while another conditional write of the key is in flight, and asks to try again.
            self.filesystem.pipe_file(path, data, mode="create")

    def replace(self, path: str, data: bytes) -> None:
        self.filesystem.pipe_file(path, data, mode="overwrite")

    def delete(self, path: str) -> None:
        self.filesystem.rm_file(path)

    def info(self, uri: Uri) -> Entry:
        found = self.filesystem.info(uri.path)
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "not an object", str(uri))
        return Entry(uri, int(found["size"]), _etag(found))

    def list(self, folder: Uri, depth: int | None) -> Iterator[Entry]:
        try:
            found = self.filesystem.find(folder.path, maxdepth=depth, detail=True)
        except FileNotFoundError:
            return
        for path, entry in found.items():
            # Consoles leave empty objects named `folder/`; and a find of an object returns the object itself.
            if entry["type"] == "file" and not path.endswith("/") and path.startswith(folder.path + "/"):
                yield Entry(Uri(folder.scheme, path), int(entry["size"]), _etag(entry))


class _Reader(io.RawIOBase):
    """A file whose failures are explained like all others, also when pyarrow reads it."""

    def __init__(self, uri: Uri, file: Any) -> None:
        self._uri, self._file = uri, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with _explained(self._uri):
            return bytes(self._file.read(-1 if size is None else size))

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def _filesystem(scheme: str, access: Access) -> Any:
    package, extra = _PACKAGES[scheme]
    options: dict[str, object] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        # s3fs retries around botocore's own retries: by default a 503 was still being retried after 25 s.
        retries = {"mode": "standard", "total_max_attempts": 4}
        limits = {"connect_timeout": 5, "read_timeout": 30, "retries": retries}
        options |= {"endpoint_url": access.endpoint_url, "config_kwargs": limits}
    try:
        filesystem = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise DataError(f"{scheme}://", expected=f"the package {package}", seen=str(error),
                        next_step=f"pip install '{extra}'") from error  # fmt: skip
    if scheme == "s3":
        filesystem.retries = 2
    return filesystem


@contextmanager
def _scratch_file(path: str, data: bytes, scratch: str | None) -> Iterator[str]:
    """A durable file of `data`, to be linked or renamed to `path`; its name is hidden and not *.parquet."""
    folder = Path(scratch or os.path.dirname(path))
    for needed in (folder, Path(path).parent):
        _make_folder(needed)
    temporary = str(folder / f"_{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(os.path.dirname(path))
    finally:
        with suppress(FileNotFoundError):  # a rename took it
            os.unlink(temporary)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file, which must not pass for a lost race
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder is needed", str(folder)) from error


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _etag(details: dict[str, Any]) -> str | None:
    found = details.get("ETag") or details.get("etag")
    return str(found).strip('"') if found else None


def _hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _visible(folder: Uri, entries: Entries) -> Entries:
    start = len(folder.path.rstrip("/")) + 1
    return [e for e in entries if not any(_hidden(name) for name in e.uri.path[start:].split("/"))]


def _split_glob(pattern: Uri) -> tuple[Uri, list[str]]:
    """The folder that a glob is fixed to, and its path components from the first wildcard on."""
    names = pattern.path.split("/")
    first = next((i for i, name in enumerate(names) if re.search(r"[*?\[]", name)), len(names))
    return Uri(pattern.scheme, "/".join(names[:first]) or "/"), names[first:]


@contextmanager
def _explained(uri: Uri, *, writing: bool = False) -> Iterator[None]:
    """Turn what a store raises into our errors; FileNotFoundError and FileExistsError keep their meaning."""
    try:
        yield
    except IntegrandError:
        raise
    except Exception as error:
        known = _explain(uri, error, writing)
        if known is None:
            raise
        raise known from error


def _explain(uri: Uri, error: Exception, writing: bool) -> Exception | None:
    """The error that `error` amounts to, or None where it is to be raised as it is."""
    code, where, seen = _code(error), str(uri), f"{type(error).__name__}: {error}"
    if isinstance(error, FileExistsError) or (isinstance(error, FileNotFoundError) and not writing):
        return None
    if writing and code in _PRECONDITION:
        return FileExistsError(errno.EEXIST, "an object is there already", where)
    if type(error).__name__ == "FileExpired" or code in _PRECONDITION:
        return IntegrityError(where, expected="an object that stays as it was planned", seen=seen,
                              next_step="plan the run again")  # fmt: skip
    if code in _EXPIRED:
        return TransientError(where, expected="valid credentials", seen=seen,
                              next_step="renew them and run the same command again; it resumes")  # fmt: skip
    if type(error).__name__ in _ANONYMOUS:
        return DataError(where, expected="credentials in the environment", seen=seen,
                         next_step="set AWS_PROFILE or the AWS_* key variables")  # fmt: skip
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return DataError(where, expected="a place that can be " + ("written" if writing else "read"),
                         seen=seen, next_step="check the path, the bucket and your permissions")  # fmt: skip
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return DataError(where, expected="a store that takes this request", seen=seen,
                         next_step="check the URI")  # fmt: skip
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
        return TransientError(where, expected="an answer from the store", seen=seen,
                              next_step="check network and free space; run again to resume")  # fmt: skip
    return None


def _code(error: Exception) -> str:
    """The S3 error code behind an error that s3fs translated, or nothing."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""
