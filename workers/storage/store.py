"""The only door to object storage: local files through the operating system, object stores through
fsspec.

Everything is addressed by a parsed Uri. Missing objects raise FileNotFoundError and a lost race to
create raises FileExistsError; every other failure of a store becomes a DataError (this place cannot
be used), a TransientError (it may work later) or an IntegrityError (the object changed while it was
read). What may pass at an object store has been tried again by then, within the bounds of
`Access.retry_policy`.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from fsspec.utils import glob_translate

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.uris import SCHEMES, Uri, parse_uri
from integrand.workers.failpoints import reach
from integrand.workers.storage.failures import explained
from integrand.workers.storage.objects import Entry, Objects, S3Objects
from integrand.workers.storage.retries import RetryPolicy

_SCRATCH = re.compile(r"_[0-9a-f]{32}\.tmp")


@dataclass(frozen=True)
class Access:
    """The operator's storage settings. They never come from a job spec."""

    endpoint_url: str | None = None
    schemes: tuple[str, ...] = SCHEMES
    buckets: tuple[str, ...] = ()
    decoded_bytes: int = 2 << 30
    """What the columns of one shard may decode to."""
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)


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
            raise SpecError(
                f"uri {text!r}",
                expected=f"one of the buckets {', '.join(self.access.buckets)}",
                seen=bucket,
                next_step="ask the operator to allow the bucket",
            )
        return uri

    def read(self, uri: Uri) -> bytes:
        """The whole object."""
        with explained(uri):
            return self._place(uri).read(uri)

    def read_tail(self, uri: Uri, size: int, count: int) -> bytes:
        """The last `count` bytes of an object of `size` bytes, or all of a shorter one."""
        with explained(uri):
            return self._place(uri).read_range(uri, max(0, size - count), size)

    def open(
        self, uri: Uri, *, etag: str | None = None, tick: Callable[[], None] = lambda: None
    ) -> io.RawIOBase:
        """A seekable binary file; a tick for each part that arrives.

        IntegrityError if its ETag is not `etag`, or if it changes while read.
        """
        with explained(uri):
            file, seen = self._place(uri).open(uri)
        if etag is not None and seen != etag:
            raise IntegrityError(
                str(uri), expected=f"ETag {etag}", seen=str(seen), next_step="plan again"
            )
        return _Reader(uri, file, tick)

    def create(self, uri: Uri, data: bytes, *, scratch: Uri | None = None) -> None:
        """Write the object whole, once; local bytes go into the folder `scratch` first.

        FileExistsError if it is there already. Where the answer to this very write was lost, the
        object is read back: the same bytes are a success.
        """
        with explained(uri, writing=True):
            self._place(uri).create(uri, data, scratch.path if scratch else None)

    def replace(self, uri: Uri, data: bytes) -> None:
        """Write the object, whatever was there; readers see the old bytes or the new ones."""
        with explained(uri, writing=True):
            self._place(uri).replace(uri, data)

    def delete(self, uri: Uri) -> None:
        """Remove the object, if it is there."""
        with explained(uri), suppress(FileNotFoundError):
            self._place(uri).delete(uri)

    def sweep(self, folder: Uri) -> None:
        """Remove the scratch files that killed writers left in a local folder; on object stores
        there are none.
        """
        if folder.scheme == "file":
            for entry in [e for e in self.list(folder, depth=1) if _SCRATCH.fullmatch(e.uri.name)]:
                self.delete(entry.uri)

    def info(self, uri: Uri) -> Entry:
        """Size and version of one object; FileNotFoundError for folders too."""
        with explained(uri):
            return self._place(uri).info(uri)

    def exists(self, uri: Uri) -> bool:
        try:
            self.info(uri)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: Uri, *, depth: int | None = None) -> Entries:
        """Every file below a folder, at most `depth` levels down, sorted by path; [] below a
        missing one.
        """
        return sorted(self.walk(folder, depth=depth), key=lambda entry: entry.uri.path)

    def walk(self, folder: Uri, *, depth: int | None = None) -> Iterator[Entry]:
        """The same one by one and in no order, for folders of 100,000 files."""
        with explained(folder):
            yield from self._place(folder).list(folder, depth)

    def expand(self, pattern: Uri) -> Entries:
        """The files that a file, folder or glob (`*`, `?`, `[...]`, `**`) stands for, sorted by
        path.

        Hidden names (`_x`, `.x`) below the folder, or below the fixed part of the glob, are left
        out, unless the glob spells one itself. An existing file or local folder is meant literally,
        whatever its name has in it.
        """
        with suppress(FileNotFoundError):
            return [self.info(pattern)]
        fixed, rest = split_glob(pattern)
        if not rest:
            return _visible(pattern, self.list(pattern))
        depth = None if any("**" in name for name in rest) else len(rest)
        matches = re.compile(glob_translate("/".join(rest))).match
        start = len(fixed.path.rstrip("/")) + 1
        found = [
            entry for entry in self.list(fixed, depth=depth) if matches(entry.uri.path[start:])
        ]
        return found if any(_hidden(name) for name in rest) else _visible(fixed, found)

    def prove_creates(self, root: Uri) -> None:
        """Create one probe twice. DataError if the place cannot be written or the second create
        succeeds.
        """
        probe = root.child(f"_probe-{uuid4().hex}")
        self._creates(probe, b"first")
        # other bytes: the same ones would pass for this very write
        twice = self._creates(probe, b"second")
        with suppress(DataError):  # a place that denies deletes can commit all the same
            self.delete(probe)
        if twice:
            raise DataError(
                str(root),
                expected="a store that refuses to create an object twice",
                seen="both creates of one probe succeeded",
                next_step="use a store with conditional writes: S3, GCS, Azure",
            )

    def _creates(self, uri: Uri, data: bytes) -> bool:
        try:
            self.create(uri, data)
        except FileExistsError:
            return False
        return True

    def _place(self, uri: Uri) -> _Place:
        if uri.scheme == "file":
            return _Files()
        key = (os.getpid(), uri.scheme)
        if key not in self._places:
            # Two threads may both build one: setdefault lets them agree, and no lock is held across
            # a fork.
            kind = S3Objects if uri.scheme == "s3" else Objects
            self._places.setdefault(
                key, kind(uri.scheme, self.access.endpoint_url, self.access.retry_policy)
            )
        return self._places[key]


class _Place(Protocol):
    """What a kind of storage must do."""

    def read(self, uri: Uri) -> bytes: ...
    def read_range(self, uri: Uri, start: int, stop: int) -> bytes: ...
    def open(self, uri: Uri) -> tuple[Any, str | None]: ...
    def create(self, uri: Uri, data: bytes, scratch: str | None) -> None: ...
    def replace(self, uri: Uri, data: bytes) -> None: ...
    def delete(self, uri: Uri) -> None: ...
    def info(self, uri: Uri) -> Entry: ...
    def list(self, folder: Uri, depth: int | None) -> Iterable[Entry]: ...


class _Files:
    """Local files. fsspec's create is exists-then-write; a hard link is exclusive and never
    half-written.
    """

    def read(self, uri: Uri) -> bytes:
        self.info(uri)  # devices and pipes have no end
        return Path(uri.path).read_bytes()

    def read_range(self, uri: Uri, start: int, stop: int) -> bytes:
        with open(uri.path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def open(self, uri: Uri) -> tuple[Any, None]:
        return open(uri.path, "rb"), None

    def create(self, uri: Uri, data: bytes, scratch: str | None) -> None:
        try:
            self._link(uri, data, scratch)
        except FileNotFoundError:
            # another driver has finished the run meanwhile, and swept the scratch folder
            if os.path.lexists(uri.path):
                raise FileExistsError(errno.EEXIST, "a file is there already", uri.path) from None
            self._link(uri, data, scratch)

    def _link(self, uri: Uri, data: bytes, scratch: str | None) -> None:
        with _scratch_file(uri.path, data, scratch) as temporary:
            os.link(temporary, uri.path)

    def replace(self, uri: Uri, data: bytes) -> None:
        try:
            self._rename(uri, data)
        except FileNotFoundError:  # swept likewise
            self._rename(uri, data)

    def _rename(self, uri: Uri, data: bytes) -> None:
        with _scratch_file(uri.path, data, None) as temporary:
            os.replace(temporary, uri.path)

    def delete(self, uri: Uri) -> None:
        os.unlink(uri.path)

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


class _Reader(io.RawIOBase):
    """A file whose failures are explained like all others, also when pyarrow reads it."""

    def __init__(self, uri: Uri, file: Any, tick: Callable[[], None]) -> None:
        self._uri, self._file, self._tick = uri, file, tick

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with explained(self._uri):
            data = bytes(self._file.read(-1 if size is None else size))
        self._tick()
        return data

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


@contextmanager
def _scratch_file(path: str, data: bytes, scratch: str | None) -> Iterator[str]:
    """A durable file of `data`, to be linked or renamed to `path`; its name is hidden and not
    *.parquet.
    """
    folder = Path(scratch or os.path.dirname(path))
    for needed in (folder, Path(path).parent):
        _make_folder(needed)
    temporary = str(folder / f"_{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            whole, half = memoryview(data), len(data) // 2
            file.write(whole[:half])
            reach("store.half_written")
            file.write(whole[half:])
            file.flush()
            os.fsync(file.fileno())
        reach("store.written")
        yield temporary
        reach("store.linked")
        _sync_folder(os.path.dirname(path))
    finally:
        with suppress(FileNotFoundError):  # a rename took it
            os.unlink(temporary)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file, which must not pass for a lost race
        raise NotADirectoryError(
            errno.ENOTDIR, "a file stands where a folder is needed", str(folder)
        ) from error


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _visible(folder: Uri, entries: Entries) -> Entries:
    start = len(folder.path.rstrip("/")) + 1
    visible = []
    for entry in entries:
        names = entry.uri.path[start:].split("/")
        if not any(_hidden(name) for name in names):
            visible.append(entry)
    return visible


def split_glob(pattern: Uri) -> tuple[Uri, list[str]]:
    """The folder that a glob is fixed to, and its path components from the first wildcard on."""
    names = pattern.path.split("/")

    def wild(i: int) -> bool:
        literal = pattern.scheme == "file" and os.path.lexists("/".join(names[: i + 1]))
        return bool(re.search(r"[*?\[]", names[i])) and not literal

    first = next((i for i in range(len(names)) if wild(i)), len(names))
    return Uri(pattern.scheme, "/".join(names[:first]) or "/"), names[first:]


__all__ = ["Access", "Entry", "Store", "split_glob"]
