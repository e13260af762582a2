"""What the failure of a store means: this place cannot be used, it may work later, or the object
has changed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from integrand.schemas.errors import DataError, IntegrandError, IntegrityError, TransientError
from integrand.schemas.uris import Uri

# Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; numbers where an
# answer had no body.
_PRECONDITION = ("PreconditionFailed", "412")
_OUTSIDE = ("InvalidRange", "416")
_EXPIRED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "RequestExpired",
    "UnauthorizedSSOTokenError",
    "TokenRetrievalError",
)
_SKEWED = ("RequestTimeTooSkewed", "RequestInTheFuture")
_SPOILT = (
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
)
"""Answers of status 400 to a request that suffered on its way."""

_ANONYMOUS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")
_LATER = (408, 409, 425, 429)
_UNUSABLE = (
    errno.EROFS,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ENOSYS,
    errno.ENOTSUP,
    getattr(errno, "EREMCHG", errno.EINVAL),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PLACE = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextmanager
def explained(uri: Uri, *, writing: bool = False) -> Iterator[None]:
    """Turn what a store raises into our errors; FileNotFoundError and FileExistsError keep their
    meaning.
    """
    try:
        yield
    except IntegrandError:
        raise
    except Exception as error:
        known = _explain(uri, error, writing)
        if known is None:
            raise
        raise known from error


def code_of(error: BaseException | None) -> str:
    """The S3 error code behind an error that s3fs translated, or that error's name."""
    return str(_answer(error).get("Error", {}).get("Code", "")) or type(error).__name__


def credentials_expired(error: TransientError) -> bool:
    return code_of(error.__cause__) in _EXPIRED


def clock_is_wrong(error: TransientError) -> bool:
    return code_of(error.__cause__) in _SKEWED


@dataclass(frozen=True)
class _Meaning:
    """What a failure amounts to, in our own words."""

    kind: type[IntegrandError]
    expected: str
    next_step: str


_CHANGED = _Meaning(IntegrityError, "an object that stays as it was planned", "plan the run again")
_STALE_CREDENTIALS = _Meaning(
    TransientError, "valid credentials", "renew them and run the same command again; it resumes"
)
_WRONG_CLOCK = _Meaning(
    TransientError,
    "a clock that agrees with the store's",
    "set this machine's clock and run the same command again; it resumes",
)
_NO_CREDENTIALS = _Meaning(
    DataError, "credentials in the environment", "set AWS_PROFILE or the AWS_* key variables"
)
_NO_SPACE = _Meaning(
    TransientError,
    "free space on the filesystem",
    "make room and run the same command again; it resumes",
)
_CHECK_PLACE = "check the path, the bucket and your permissions"
_UNREADABLE = _Meaning(DataError, "a place that can be read", _CHECK_PLACE)
_UNWRITABLE = _Meaning(DataError, "a place that can be written", _CHECK_PLACE)
_NOT_TAKEN = _Meaning(DataError, "a store that takes this request", "check the URI")
_SILENT = _Meaning(
    TransientError, "an answer from the store", "check network and store; run again to resume"
)
_BY_CODE = (
    (_PRECONDITION + _OUTSIDE, _CHANGED),
    (_EXPIRED, _STALE_CREDENTIALS),
    (_SKEWED, _WRONG_CLOCK),
    (_ANONYMOUS, _NO_CREDENTIALS),
)


def _explain(uri: Uri, error: Exception, writing: bool) -> Exception | None:
    """The error that `error` amounts to, or None where it is to be raised as it is."""
    code, where = code_of(error), str(uri)
    if isinstance(error, FileExistsError) or (isinstance(error, FileNotFoundError) and not writing):
        return None
    if writing and code in _PRECONDITION:
        return FileExistsError(errno.EEXIST, "an object is there already", where)
    meaning = _meaning_of(error, code, writing)
    if meaning is None:
        return None
    return meaning.kind(
        where,
        expected=meaning.expected,
        seen=f"{type(error).__name__}: {error}",
        next_step=meaning.next_step,
    )


def _meaning_of(error: Exception, code: str, writing: bool) -> _Meaning | None:
    for codes, meaning in _BY_CODE:
        if code in codes:
            return meaning
    if isinstance(error, OSError) and error.errno in _FULL:
        return _NO_SPACE
    if isinstance(error, _NO_PLACE):
        return _UNWRITABLE if writing else _UNREADABLE
    if _not_taken(error, code):
        return _NOT_TAKEN
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
        return _SILENT
    return None


def _not_taken(error: Exception, code: str) -> bool:
    """Whether to ask again would be in vain: the request itself is at fault."""
    if code in _SPOILT:
        return False
    rejected = 400 <= _status(error) < 500 and _status(error) not in _LATER
    unusable = isinstance(error, OSError) and error.errno in _UNUSABLE
    return rejected or unusable or code == "ParamValidationError"


def _status(error: Exception) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answer(error: BaseException | None) -> dict[str, Any]:
    """What botocore keeps of an error's answer."""
    found = getattr(error, "response", None) or getattr(
        getattr(error, "__cause__", None), "response", None
    )
    return found if isinstance(found, dict) else {}
