"""A store whose answers fail on their way, and what is asked of it."""

from __future__ import annotations

from integrand.schemas.uris import Uri
from integrand.workers.storage.retries import RetryPolicy
from integrand.workers.storage.store import Access, Store
from tests.plugins.proxy import Proxy

PATIENT = RetryPolicy(deadline_s=60, answer_s=10, tries=6, first_wait_s=0.01, longest_wait_s=0.1)
BOUND_S = 20
"""Ten times the deadline of the hasty store."""

BODY = b"0123456789" * 100


def connected(proxy: Proxy, retry_policy: RetryPolicy) -> Store:
    """A store whose client is there already: on a busy machine that alone takes seconds."""
    store = Store(Access(proxy.endpoint_url, retry_policy=retry_policy))
    store._place(Uri("s3", "tests"))._filesystem.connect()
    return store


def folder_of(place: Uri) -> Uri:
    return Uri("s3", place.path.rpartition("/")[0])


def read_open(store: Store, place: Uri) -> bytes:
    with store.open(place) as file:
        return file.read(-1)


def sizes(store: Store, place: Uri, depth: int | None = None) -> list[int]:
    return [entry.size for entry in store.list(folder_of(place), depth=depth)]
