"""Ray off loopback is used only if it asks for a token, and the token that it makes is nobody
else's to read.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import ray

from integrand.schemas.errors import SpecError, TransientError
from integrand.service.pools.clusters import is_loopback, protect_token, require_authentication
from integrand.service.pools.ray import RayPool
from tests.plugins.heads import Cluster, free_ports, head
from tests.plugins.jobs import JobFolder
from tests.plugins.processes import Family


def own_address() -> str:
    """An address of this machine that is not loopback; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(one.getsockname()[0])


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[Cluster]:
    with head(own_address(), RAY_AUTH_MODE="disabled") as made:
        yield made


@pytest.fixture(scope="module")
def token() -> str:
    return uuid4().hex + uuid4().hex


@pytest.fixture(scope="module")
def token_cluster(token: str) -> Iterator[Cluster]:
    with head(own_address(), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as made:
        yield made


CONNECT = """
import sys
from integrand.service.pools.ray import RayPool
pool = RayPool(*sys.argv[1:])
pool.connect()
print("connected")
pool.close()
"""


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=200
    )


@pytest.mark.ray
def test_an_open_cluster_off_loopback_is_refused(open_cluster: Cluster):
    """Through either door of Ray, before anything of ours is sent."""
    for address in (open_cluster.address, open_cluster.client):
        with pytest.raises(SpecError, match="takes calls from anybody"):
            RayPool(address).connect()
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_token_of_ours_does_not_make_it_another(open_cluster: Cluster):
    mine = open_cluster.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex * 2}
    done = python(mine, "-c", CONNECT, open_cluster.address)
    assert (done.returncode, "takes calls from anybody" in done.stderr) == (1, True), done.stderr


@pytest.mark.ray
def test_an_open_cluster_is_used_by_those_who_accept_it(job: JobFolder, open_cluster: Cluster):
    done = python(
        open_cluster.environment,
        "-m",
        "integrand.service.cli",
        "run",
        str(job.write_spec()),
        "--trust-model-code",
        job.module,
        "--address",
        open_cluster.address,
        "--allow-unauthenticated-ray",
    )
    assert (done.returncode, "2 of 2" in done.stdout) == (0, True), done.stderr


@pytest.mark.ray
def test_a_cluster_that_asks_for_a_token_is_used(token_cluster: Cluster):
    for address in (token_cluster.address, token_cluster.client):
        require_authentication(address)
    done = python(token_cluster.environment, "-c", CONNECT, token_cluster.address)
    assert (done.returncode, done.stdout) == (0, "connected\n"), done.stderr


@pytest.mark.ray
@pytest.mark.parametrize(
    ("authorization", "status"), [(None, 401), ("Bearer wrong", 403), ("right", 200)]
)
def test_its_job_interface_asks_for_the_token(
    token_cluster: Cluster, token: str, authorization: str | None, status: int
):
    sent = {"right": f"Bearer {token}"}.get(authorization or "", authorization)
    request = urllib.request.Request(
        f"{token_cluster.dashboard}/api/jobs/", headers={"Authorization": sent} if sent else {}
    )
    try:
        seen = urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        seen = error.code
    assert seen == status


@pytest.mark.ray
@pytest.mark.parametrize("mode", ["token by default", "disabled"])
def test_a_ray_of_our_own_asks_for_a_token_that_only_we_can_read(tmp_path: Path, mode: str):
    """It listens on every interface, so it is no better than another where authentication was
    turned off.
    """
    family = Family()
    environment = family.environment(
        HOME=str(tmp_path), **({"RAY_AUTH_MODE": mode} if mode == "disabled" else {})
    )
    try:
        done = python(environment, "-c", CONNECT)
        assert not family.left(within=60)
    finally:
        family.kill()
    folder = tmp_path / ".ray"
    assert folder.stat().st_mode & 0o777 == 0o700
    if mode == "disabled":
        assert (done.returncode, "takes calls from anybody" in done.stderr) == (
            1,
            True,
        ), done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "connected\n"), done.stderr
        assert (folder / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_token_that_others_could_read_is_closed_to_them(tmp_path: Path):
    token = tmp_path / "folder" / "auth_token"
    token.parent.mkdir(mode=0o755)
    protect_token(token)  # there is none yet
    token.write_text("secret")
    token.chmod(0o644)
    protect_token(token)
    assert (token.parent.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "::1"])
def test_loopback(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "localhost.example", "127.0.0.1.example", "0.0.0.0", "[fd00::2]", "head", ""],
)
def test_not_loopback(host: str):
    assert not is_loopback(host)


def test_a_place_where_nobody_answers_is_told_apart():
    (port,) = free_ports(1)
    with pytest.raises(TransientError, match="UNAVAILABLE"):
        require_authentication(f"{own_address()}:{port}")
    with pytest.raises(TransientError, match="a cluster that answers"):
        RayPool(f"{own_address()}:{port}").connect()
