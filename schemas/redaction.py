"""Texts that others wrote (errors, tracebacks), without the secrets that such texts are known to
carry.
"""

from __future__ import annotations

import re

_HIDDEN = "***"
_QUERY = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|signature|awsaccesskeyid|googleaccessid|sig|token|"
    r"access_token|api_?key"
)
_HEADERS = (
    r"(?:proxy-)?authorization|x-ray-authorization|x-amz-security-token|x-api-key|cookie|set-cookie"
)
_FIELDS = (
    r"password|passwd|[a-z0-9_]{0,40}(?:secret|private)_?(?:access_?)?key|[a-z0-9_]{0,40}(?:session|auth)_?token|"
    r"account_?key|client_?secret|[a-z0-9_]{1,40}_(?:secret|token)|[a-z0-9_]{0,40}api_?key|"
    r"(?:access|refresh|id)token"
)
_UNSEEN = r"(?=\S)(?![\"'b]*\*\*\*)"
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), kept)
    for pattern, kept in (
        # presigned URLs and SAS: the query's value
        (rf"([?&;](?:{_QUERY})=)[^&\s\"'<>)\]]+", rf"\1{_HIDDEN}"),
        # user:password@host
        (r"(\b[a-z][a-z0-9+.\-]{0,30}://)[^/\s@\"'?#]+@", rf"\1{_HIDDEN}@"),
        # headers and settings, as text, JSON or Python: a value in quotes, a header to the end of
        # its line, a word
        (rf"(\b(?:{_HEADERS}|{_FIELDS})\b[\"']?\s*[:=]\s*b?)([\"'])[^\n]*?\2", rf"\1\2{_HIDDEN}\2"),
        (rf"(\b(?:{_HEADERS})\b[\"']?\s*[:=]\s*){_UNSEEN}[^\n]+", rf"\1{_HIDDEN}"),
        (rf"(\b(?:{_FIELDS})\b[\"']?\s*[:=]\s*){_UNSEEN}[^\s,;}})\]]+", rf"\1{_HIDDEN}"),
        (r"(\bbearer\s+)[a-z0-9\-._~+/]+=*", rf"\1{_HIDDEN}"),
    )
)


def redact(text: str) -> str:
    """The text with signatures, tokens, passwords and authorization headers starred out. What it
    has none of stays.

    Lone surrogates, which no file or message can hold, are spelt out.
    """
    for pattern, kept in _PATTERNS:
        text = pattern.sub(kept, text)
    return text.encode(errors="backslashreplace").decode()
