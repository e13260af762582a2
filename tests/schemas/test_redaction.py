"""Secrets that error texts are known to carry are starred out; what is no secret stays."""

from __future__ import annotations

import pickle

import pytest

from integrand.schemas.errors import TransientError
from integrand.schemas.redaction import redact

CANARY = "cAnArY/0123+456=="
LEAKS = [
    (
        "GET "
        f"https://b.s3.example/k?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA{CANARY}&X-Amz-Signature={CANARY}"
    ),
    f"('https://b.s3.example/k?X-Amz-Security-Token={CANARY}')",
    f"https://account.blob.example/c/k?sv=2024&sig={CANARY}&se=2026",
    f"https://storage.example/k?GoogleAccessId=x{CANARY}&Signature={CANARY}",
    f"Authorization: AWS4-HMAC-SHA256 Credential={CANARY}, SignedHeaders=host, Signature={CANARY}",
    f"authorization: Bearer {CANARY}",
    (
        f"{{'Authorization': b'AWS4-HMAC-SHA256 Credential={CANARY}, Signature={CANARY}', 'Host':"
        " 'x'}"
    ),
    f'{{"x-amz-security-token": "{CANARY}", "range": "bytes=0-1"}}',
    f"sent Bearer {CANARY}",
    f"AWS_SECRET_ACCESS_KEY={CANARY}",
    f"aws_session_token = {CANARY}",
    f"SecretKey: {CANARY}",
    f"Client(key='AKIA', secret_key='{CANARY}')",
    f"postgresql://user:{CANARY.replace('/', '.')}@host/db",
    f"https://{CANARY.replace('/', '.')}@host/x",
    f"Cookie: ray-authentication-token={CANARY}",
    f"password='{CANARY}'",
    f"AZURE_CLIENT_SECRET={CANARY}",
    f'{{"access_token": "{CANARY}", "expires_in": 3600}}',
    f"{{'refresh_token': '{CANARY}', 'client_secret': '{CANARY}'}}",
    f"HF_TOKEN={CANARY}",
    f"openai_api_key={CANARY}",
]
KEPT = [
    "no such file: s3://bucket/token/signature.parquet",
    "abfs://container/x at 2026-01-01T00:00:00",
    "https://host/path?versionId=3&list-type=2",
    'File "/srv/models/secret_model.py", line 3, in forward\n    raise ValueError(x)',
    "column `token`: expected 3, seen 4",
    "SignatureDoesNotMatch when calling the PutObject operation: check your secret",
    "the token count is 17; key = 3",
]


@pytest.mark.parametrize("text", LEAKS)
def test_a_secret_is_starred_out(text: str):
    found = redact(text)
    assert "cAnArY" not in found
    assert "***" in found
    assert redact(found) == found


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text: str):
    assert redact(text) == text


def test_the_rest_of_the_text_stays():
    text = (
        f"GET https://b.example/k?X-Amz-Signature={CANARY}&partNumber=2 failed\nAuthorization:"
        f" Bearer {CANARY}\nretry"
    )
    assert (
        redact(text)
        == "GET https://b.example/k?X-Amz-Signature=***&partNumber=2 failed\nAuthorization:"
        " ***\nretry"
    )


@pytest.mark.parametrize("text", LEAKS)
def test_our_errors_never_hold_one(text: str):
    error = TransientError("s3://bucket/key", expected="an answer", seen=text)
    for shown in (str(error), repr(error), str(pickle.loads(pickle.dumps(error)))):
        assert "cAnArY" not in shown


def test_lone_surrogates_are_spelt_out():
    """No file, message or JSON could hold them."""
    assert redact("a \ud800 b \udcff") == r"a \ud800 b \udcff"


def test_where_it_was_is_redacted_too():
    assert CANARY not in str(TransientError(f"https://b.s3.example/k?X-Amz-Signature={CANARY}"))
