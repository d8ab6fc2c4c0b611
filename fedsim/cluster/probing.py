"""Whether a Ray cluster answers at an address. Ray itself would try for minutes, and write to the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

from fedsim.errors import InputError

PLACE = "runtime.ray (--ray)"
PATIENCE = 4.0
"""Seconds for a connection, and again for an answer."""

_CLIENT = "ray://"
# The cheapest question to each kind of port: empty messages, of which the meaning does not matter here.
_CLUSTER_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"


def auto_address(ray: ModuleType, say: Callable[[str], None]) -> str:
    """The cluster that `auto` means: RAY_ADDRESS, which is said, or the one that `ray start` started here."""
    named = os.environ.get("RAY_ADDRESS")
    if named and named not in ("auto", "local"):
        say(f"'auto' is the Ray cluster that RAY_ADDRESS names, {named}")
        return named
    from ray._private.utils import read_ray_address

    found = read_ray_address()
    if not found:
        raise InputError(
            f"{PLACE}: 'auto': no Ray cluster runs on this machine; start one (`ray start --head`), name one "
            '(HOST:PORT or ray://HOST:PORT), or use "local"'
        )
    return str(found)


def answers(address: str) -> None:
    """Return if a Ray cluster answers at `HOST:PORT` or `ray://HOST:PORT`. Raises InputError, soon, if none does."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel

    client, target = address.startswith(_CLIENT), address.removeprefix(_CLIENT)
    # As Ray connects: past any proxy for web pages, and
    channel = init_grpc_channel(
        target, [("grpc.enable_http_proxy", 0)]
    )  # with the certificates and the token of this process, if there are any
    try:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE)
        call = channel.unary_unary(_CLIENT_CALL if client else _CLUSTER_CALL)
        call(b"", timeout=PATIENCE)
    except grpc.FutureTimeoutError:
        raise InputError(
            f"{PLACE}: '{address}': no Ray cluster answers there; check the host, the port and the firewall "
            f"({_ports()}), and that the cluster is up (`ray status` there)"
        ) from None
    except grpc.RpcError as error:
        _judge(error, address, client)
    finally:
        channel.close()


def _judge(error: object, address: str, client: bool) -> None:
    """What an error to an empty question means. Any but these is the answer of a Ray cluster."""
    import grpc

    code = error.code() if isinstance(error, grpc.Call) else None
    if code == grpc.StatusCode.UNIMPLEMENTED:
        other = address.removeprefix(_CLIENT) if client else _CLIENT + address
        raise InputError(
            f"{PLACE}: '{address}': what answers there is no Ray {'client server' if client else 'head node'}; "
            f"{_ports()}: perhaps '{other}' is meant"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        raise InputError(
            f"{PLACE}: '{address}': the cluster asks for a token, or for another one; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as on its head node"
        )
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise InputError(f"{PLACE}: '{address}': something is there and does not answer as Ray does; {_ports()}")


def _ports() -> str:
    return "HOST:PORT is the head node's port, by default 6379, and ray://HOST:PORT its client server's, 10001"
