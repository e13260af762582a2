"""Stores behind a proxy that injects faults, by how long they are waited for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Access, Store
from tests.plugins.faulty_stores import BODY, PATIENT, connected
from tests.plugins.proxy import Proxy, fault_proxy


@pytest.fixture(scope="module")
def started(s3_server) -> Iterator[Proxy]:
    with fault_proxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(started: Proxy) -> Iterator[Proxy]:
    """The module's proxy, without a fault and with nothing counted."""
    started.seen.clear()
    started.injected.clear()
    yield started
    started.clear()


@pytest.fixture(scope="module")
def store(started: Proxy) -> Store:
    return Store(Access(started.endpoint_url, retry_policy=PATIENT))


@pytest.fixture(scope="module")
def eager(started: Proxy) -> Store:
    """It asks again after a second."""
    return connected(started, replace(PATIENT, answer_s=1))


@pytest.fixture(scope="module")
def hasty(started: Proxy) -> Store:
    """It gives up after two seconds."""
    return connected(started, replace(PATIENT, deadline_s=2, answer_s=0.7, tries=1000))


@pytest.fixture(scope="module")
def behind(s3_server) -> Store:
    """The same objects beside the proxy, for what others do meanwhile."""
    return Store(s3_server.access)


@pytest.fixture
def place(behind: Store, s3_root: Uri) -> Uri:
    """An object of 1,000 bytes, alone below its root."""
    behind.create(s3_root.child("object"), BODY)
    return s3_root.child("object")
