"""Ray clusters: whether one takes anybody's calls, and the token that keeps others out of ours.

Whoever reaches an open Ray can run code on it (CVE-2023-48022), so it is asked before anything of
ours is sent.
"""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import grpc

from integrand.schemas.errors import SpecError, TransientError

RAY_TOKEN = Path("~/.ray/auth_token").expanduser()
"""Where Ray makes a token of its own, and looks for one last."""
ANSWER_S = 10.0
_CLIENT = "ray://"
_GCS_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"
_SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def require_authentication(address: str) -> None:
    """Raise SpecError if the Ray at `host:port` or `ray://host:port` takes calls without a token,
    except on loopback.

    One empty call is made, without any token of ours. TransientError if nobody answers it.
    """
    place = address.removeprefix(_CLIENT)
    if is_loopback(place.rpartition(":")[0]):
        return
    status = _status(place, _CLIENT_CALL if address.startswith(_CLIENT) else _GCS_CALL)
    if status in _SILENT:
        raise TransientError(
            f"Ray at {address}",
            expected="an answer without TLS",
            seen=status.name,
            next_step="check the address; behind TLS of your own: --allow-unauthenticated-ray",
        )
    if status is not grpc.StatusCode.UNAUTHENTICATED:
        raise SpecError(
            f"Ray at {address}",
            expected="a cluster with token authentication, or one on loopback",
            seen="it takes calls from anybody who reaches it, and they may run code on it",
            next_step=(
                "start it with RAY_AUTH_MODE=token, or accept it: --allow-unauthenticated-ray"
            ),
        )


def is_loopback(host: str) -> bool:
    """True for `localhost` and for literal loopback addresses; no name is looked up."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _status(place: str, call: str) -> grpc.StatusCode:
    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def protect_token(token: Path) -> None:
    """Close a token file and its folder to others: Ray writes it with mode 0644. SpecError if they
    are not ours.
    """
    for place, mode in ((token.parent, 0o700), (token, 0o600)):
        try:
            if place.exists() and stat.S_IMODE(place.stat().st_mode) & 0o077:
                place.chmod(mode)
        except OSError as error:
            raise SpecError(
                f"Ray's token in {place}",
                expected=f"mode {mode:o}, so that nobody else reads it",
                seen=str(error),
                next_step=f"chmod {mode:o} {place}",
            ) from error
