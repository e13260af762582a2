"""Object stores behind fsspec: every request has a deadline of ours, is repeated with patience, and
caches nothing.

fsspec's coroutines (`_info`, `_cat_file`, ...) are its public asynchronous interface, which alone
can be cancelled.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
from fsspec.asyn import FSTimeoutError, sync
from fsspec.spec import AbstractBufferedFile

from integrand.schemas.errors import DataError, IntegrityError, TransientError
from integrand.schemas.uris import Uri
from integrand.workers.storage.failures import (
    clock_is_wrong,
    code_of,
    credentials_expired,
    explained,
)
from integrand.workers.storage.retries import RetryPolicy

Answer = TypeVar("Answer")
_PACKAGES = {"s3": ("s3fs", "integrand[s3]"), "gs": ("gcsfs", "gcsfs"), "abfs": ("adlfs", "adlfs")}
_READ_AHEAD = 1 << 20
_PART, _THREADS = 64 << 20, 8
"""A longer object is fetched in parts of so many bytes, so many at once."""

_MARK = "integrand-create"
"""Metadata of an object that was created: the mark of the call that did it."""

_LARGEST_PUT = 5 << 30
"""Bytes: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html. Larger ones need
multipart uploads.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file: `size` in bytes, `etag` from object stores, `mtime_ns` from local files."""

    uri: Uri
    size: int
    etag: str | None = None
    mtime_ns: int | None = None


class Objects:
    """One store, as one process uses it. Safe across threads; FileNotFoundError and FileExistsError
    keep their meaning.
    """

    def __init__(self, scheme: str, endpoint_url: str | None, retry_policy: RetryPolicy) -> None:
        self._scheme, self._endpoint_url, self._retry_policy = scheme, endpoint_url, retry_policy
        self._filesystem = self._connect()

    def read(self, uri: Uri) -> bytes:
        found = self.info(uri)
        if found.size <= _PART:
            return self._ask(uri, lambda fs: self._get(fs, found), size=found.size)
        starts = range(0, found.size, _PART)
        with ThreadPoolExecutor(_THREADS) as threads:
            return b"".join(
                threads.map(lambda at: self.fetch(found, at, min(at + _PART, found.size)), starts)
            )

    def read_range(self, uri: Uri, start: int, stop: int) -> bytes:
        return self.fetch(Entry(uri, stop), start, stop)

    def open(self, uri: Uri) -> tuple[Any, str | None]:
        found = self.info(uri)
        return _Ranges(self, found), found.etag

    def fetch(self, found: Entry, start: int, stop: int) -> bytes:
        """Bytes `start` up to `stop` of the very object that was found. IntegrityError if another
        one is there now.
        """
        if start >= stop:
            return b""
        return self._ask(
            found.uri, lambda fs: self._get(fs, found, (start, stop)), size=stop - start
        )

    def create(self, uri: Uri, data: bytes, scratch: str | None) -> None:
        """Write what is absent. "There already" may tell of a try of ours whose answer was lost, so
        it is looked at.
        """
        mark = uuid4().hex
        try:
            self._ask(uri, lambda fs: self._put(fs, uri, data, mark), size=len(data), writing=True)
        except FileExistsError:
            if not self._is_ours(uri, data, mark):
                raise

    def replace(self, uri: Uri, data: bytes) -> None:
        self._ask(uri, lambda fs: self._put(fs, uri, data, None), size=len(data), writing=True)

    def delete(self, uri: Uri) -> None:
        self._ask(uri, lambda fs: fs._rm_file(uri.path))

    def info(self, uri: Uri) -> Entry:
        return self._ask(uri, lambda fs: self._head(fs, uri))

    def list(self, folder: Uri, depth: int | None) -> Iterator[Entry]:
        with suppress(FileNotFoundError):
            for found in self._ask(folder, lambda fs: _listed(fs, folder.path, depth)):
                path = found["name"]
                # A listing of an object is the object itself; consoles leave empty ones named
                # `folder/`.
                if (
                    found["type"] == "file"
                    and path.startswith(folder.path + "/")
                    and not path.endswith("/")
                ):
                    yield Entry(Uri(folder.scheme, path), int(found["size"]), _etag(found))

    async def _head(self, filesystem: Any, uri: Uri) -> Entry:
        found = await filesystem._info(uri.path)
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "not an object", str(uri))
        return Entry(uri, int(found["size"]), _etag(found))

    async def _get(
        self, filesystem: Any, found: Entry, part: tuple[int, int] | None = None
    ) -> bytes:
        start, stop = part or (None, None)
        data = bytes(await filesystem._cat_file(found.uri.path, start=start, end=stop))
        if part is not None:
            # these clients cannot ask for a version of an object: look afterwards
            if found.etag is not None:
                _unchanged(found, await self._head(filesystem, found.uri))
            _complete(data, part)
        return data

    async def _put(self, filesystem: Any, uri: Uri, data: bytes, mark: str | None) -> None:
        """Write; with a `mark` only what is absent."""
        await filesystem._pipe_file(uri.path, data, mode="overwrite" if mark is None else "create")

    def _is_ours(self, uri: Uri, data: bytes, mark: str) -> bool:
        """Whether the object that is there came from the create of this mark: here, whether it has
        the same bytes.
        """
        try:
            return self.read(uri) == data
        except (FileNotFoundError, IntegrityError):  # gone or replaced since
            return False

    def _ask(
        self,
        uri: Uri,
        request: Callable[[Any], Awaitable[Answer]],
        *,
        size: int = 0,
        writing: bool = False,
    ) -> Answer:
        """The answer to a request that transfers `size` bytes, repeated while its failure is one
        that passes.
        """
        failed: TransientError | None = None
        renewed = False
        for limit in self._retry_policy.limits(size):
            filesystem = self._filesystem
            try:
                with explained(uri, writing=writing):
                    return _within(limit, filesystem, request)
            except TransientError as error:
                if clock_is_wrong(error) or (renewed and credentials_expired(error)):
                    raise
                failed = error
            if credentials_expired(failed):
                renewed = True
                self._renew(filesystem)
        assert failed is not None
        raise failed

    def _renew(self, expired: Any) -> None:
        """Another filesystem looks for credentials anew, in files that were renewed
        meanwhile too.
        """
        if self._filesystem is expired:  # another thread may have been first
            self._filesystem = self._connect()

    def _connect(self) -> Any:
        package, extra = _PACKAGES[self._scheme]
        try:
            return fsspec.filesystem(
                self._scheme, use_listings_cache=False, skip_instance_cache=True, **self._options()
            )
        except ImportError as error:
            raise DataError(
                f"{self._scheme}://",
                expected=f"the package {package}",
                seen=str(error),
                next_step=f"pip install '{extra}'",
            ) from error

    def _options(self) -> dict[str, object]:
        return {}


class S3Objects(Objects):
    """S3 and whatever speaks it. Parts are of the version that was found, and listings are repeated
    page by page.

    What is created carries a mark: "there already" does not say whose it is, not even to the first
    try, since aiohttp sends a PUT again by itself when its connection is reset.
    """

    async def _head(self, filesystem: Any, uri: Uri) -> Entry:
        place = _place(filesystem, uri)
        try:
            found = await filesystem._call_s3("head_object", **place)
        except OSError as error:
            if code_of(error) not in ("400", "403"):
                raise
            # Without a body the answer to a HEAD does not tell expired credentials or a wrong
            # clock; that to a GET does.
            found = await filesystem._call_s3("get_object", **place)
            found["Body"].close()
        return Entry(uri, int(found["ContentLength"]), _etag(found))

    async def _get(
        self, filesystem: Any, found: Entry, part: tuple[int, int] | None = None
    ) -> bytes:
        # Clients verify the checksums that stores keep, but only of whole objects: whoever wants
        # all asks for no range.
        asked = (
            {} if part in (None, (0, found.size)) else {"Range": f"bytes={part[0]}-{part[1] - 1}"}
        )
        answer = await filesystem._call_s3("get_object", **_place(filesystem, found.uri), **asked)
        try:
            now = Entry(found.uri, _size(answer), _etag(answer))
            if part is not None:
                _unchanged(found, now)
            data = bytes(await answer["Body"].read())
        finally:
            answer["Body"].close()
        # whole, it may be a newer object, such as a pointer
        if part is not None or now.etag == found.etag:
            _complete(data, part or (0, found.size))
        return data

    async def _put(self, filesystem: Any, uri: Uri, data: bytes, mark: str | None) -> None:
        """One PUT whatever the size: it is whole or not there, and no multipart upload can be left
        open.
        """
        if len(data) > _LARGEST_PUT:
            raise DataError(
                str(uri),
                expected=f"an object of at most {_LARGEST_PUT} bytes",
                seen=f"{len(data)}",
                next_step="lower compute.shard_rows",
            )
        condition = {} if mark is None else {"IfNoneMatch": "*", "Metadata": {_MARK: mark}}
        await filesystem._call_s3("put_object", **_place(filesystem, uri), Body=data, **condition)

    def _is_ours(self, uri: Uri, data: bytes, mark: str) -> bool:
        """Bytes would not do: whoever lost a race to write the same ones must hear of it, as with
        local files.
        """
        try:
            found = self._ask(uri, lambda fs: fs._call_s3("head_object", **_place(fs, uri)))
        except (FileNotFoundError, IntegrityError):
            return False
        return bool(found.get("Metadata", {}).get(_MARK) == mark)

    def list(self, folder: Uri, depth: int | None) -> Iterator[Entry]:
        bucket, key, _ = self._filesystem.split_path(folder.path)
        with suppress(FileNotFoundError):
            yield from self._below(folder, bucket, f"{key}/" if key else "", depth)

    def _below(self, folder: Uri, bucket: str, prefix: str, depth: int | None) -> Iterator[Entry]:
        for page in self._pages(
            folder, Bucket=bucket, Prefix=prefix, Delimiter="" if depth is None else "/"
        ):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # as consoles name folders
                    yield Entry(
                        Uri(folder.scheme, f"{bucket}/{found['Key']}"),
                        int(found["Size"]),
                        _etag(found),
                    )
            if depth is not None and depth > 1:
                for inner in page.get("CommonPrefixes", ()):
                    yield from self._below(folder, bucket, inner["Prefix"], depth - 1)

    def _pages(self, folder: Uri, **asked: str) -> Iterator[dict[str, Any]]:
        while True:
            page = self._ask(folder, lambda fs: fs._call_s3("list_objects_v2", **asked))
            yield page
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _options(self) -> dict[str, object]:
        # One try each of botocore and s3fs; sockets may wait as long as we do, and connect in a
        # part of that.
        answer_s = self._retry_policy.answer_s
        limits = {
            "connect_timeout": min(5.0, answer_s),
            "read_timeout": answer_s,
            "retries": {"total_max_attempts": 1},
        }
        return {"endpoint_url": self._endpoint_url, "config_kwargs": limits}

    def _connect(self) -> Any:
        filesystem = super()._connect()
        filesystem.retries = 1
        return filesystem


class _Ranges(AbstractBufferedFile):  # type: ignore[misc]
    """A file that reads ahead; what it fetches is of the object it was opened on, and fetched with
    patience.
    """

    def __init__(self, objects: Objects, found: Entry) -> None:
        self._objects, self._found = objects, found
        super().__init__(
            None, found.uri.path, "rb", _READ_AHEAD, cache_type="readahead", size=found.size
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._objects.fetch(self._found, start, end)


def _within(limit: float, filesystem: Any, request: Callable[[Any], Awaitable[Answer]]) -> Answer:
    """The answer to one try; a coroutine that is late is cancelled, and its connection closed."""
    try:
        answer: Answer = sync(filesystem.loop, request, filesystem, timeout=limit)
    except FSTimeoutError as error:
        raise TimeoutError(f"no answer within {limit:.3g} s") from error
    return answer


def _place(filesystem: Any, uri: Uri) -> dict[str, str]:
    bucket, key, _ = filesystem.split_path(uri.path)
    if not key:
        raise FileNotFoundError(errno.ENOENT, "a bucket, not an object", str(uri))
    return {"Bucket": bucket, "Key": key}


def _unchanged(found: Entry, now: Entry) -> None:
    """IntegrityError where an object is no longer the one that was found; without an ETag its size
    has to tell.
    """
    if (now.etag != found.etag) if found.etag is not None else (now.size != found.size):
        raise IntegrityError(
            str(found.uri),
            expected=f"ETag {found.etag}, {found.size} bytes, as it was opened",
            seen=f"ETag {now.etag}, {now.size} bytes",
            next_step="plan again: a changed input is another run",
        )


def _complete(data: bytes, part: tuple[int, int]) -> None:
    if len(data) != part[1] - part[0]:
        raise ConnectionError(
            errno.ECONNABORTED, f"{len(data)} bytes came instead of {part[1] - part[0]}"
        )


def _size(answer: dict[str, Any]) -> int:
    """Of the whole object, of which a GET may have asked for a part: `Content-Range: bytes
    0-9/100`.
    """
    _, _, whole = answer.get("ContentRange", "").rpartition("/")
    return int(whole or answer["ContentLength"])


def _etag(details: dict[str, Any]) -> str | None:
    found = details.get("ETag") or details.get("etag")
    return str(found).strip('"') if found else None


async def _listed(filesystem: Any, path: str, depth: int | None) -> list[dict[str, Any]]:
    """Files and folders below a path. fsspec's own walk leaves out folders that it could
    not list.
    """
    if depth is None:
        everything = await filesystem._find(path, detail=True)
        # adlfs: of an object, its name
        return list(everything.values()) if isinstance(everything, dict) else []
    found = list(await filesystem._ls(path, detail=True))
    for folder in [e["name"] for e in found if e["type"] == "directory" and depth > 1]:
        with suppress(FileNotFoundError):  # deleted since
            found += await _listed(filesystem, folder, depth - 1)
    return found
