"""Clusters that are there, are not there, or are of somebody else; and what is left when a run is interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsim.cluster import connecting, probing
from fedsim.cluster.connecting import Node, connected
from fedsim.errors import InputError

pytest.importorskip("ray", reason="needs pip install 'fedsim-adversarial[ray]'")


@pytest.fixture
def mute() -> Iterator[int]:
    """A port at which somebody listens who never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("kind", ["", "ray://"])
def test_an_address_without_a_cluster_is_refused_soon(kind: str, mute: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probing.PATIENCE < 5
    monkeypatch.setattr(probing, "PATIENCE", 0.5)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for port in (mute, closed.getsockname()[1]):
            start = time.monotonic()
            with pytest.raises(InputError, match=r"runtime.ray \(--ray\): '.*': no Ray cluster answers there; check"):
                connected(f"{kind}127.0.0.1:{port}").__enter__()
            assert time.monotonic() - start < 9


@pytest.mark.parametrize("kind", ["", "ray://"])
def test_something_else_at_the_address_is_told_from_ray(kind: str) -> None:
    from concurrent import futures

    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        other = "ray://127.0.0.1" if not kind else "127.0.0.1"
        with pytest.raises(InputError, match=f"what answers there is no Ray .* perhaps '{other}:{port}' is meant"):
            connected(f"{kind}127.0.0.1:{port}").__enter__()
    finally:
        server.stop(None)


def test_auto_without_a_cluster_says_how_to_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: None)
    with pytest.raises(InputError, match=r"no Ray cluster runs on this machine; start one \(`ray start --head`\)"):
        connected("auto").__enter__()


def test_auto_says_that_the_environment_named_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(probing, "PATIENCE", 0.2)
    with pytest.raises(InputError, match=r"'127\.0\.0\.1:1': no Ray cluster answers there"):
        connected("auto", said.append).__enter__()
    assert said == ["'auto' is the Ray cluster that RAY_ADDRESS names, 127.0.0.1:1"]


def test_another_version_and_a_missing_ray_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0.0")

    ray = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setattr(connecting, "ray_module", lambda: ray)
    monkeypatch.setattr(connecting, "answers", lambda address: None)
    with pytest.raises(InputError, match=r"Ray: 2\.0\.0; install the same versions of Python .* and Ray on all"):
        connected("10.0.0.1:6379").__enter__()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"not installed here .* pip install 'fedsim-adversarial\[ray\]'"):
        connected("local").__enter__()


@pytest.mark.parametrize(
    ("cpus", "gpus", "fit"),
    [(1, 0, 8), (0.5, 0, 16), (0.1, 0, 80), (3, 0, 2), (16, 0, 0), (1, 0.25, 8), (0.5, 0.4, 4), (1, 1, 2), (1, 2, 1),
     (1, 3, 0), (2, 0.5, 4)],
)  # fmt: skip
def test_how_many_processes_fit_on_a_node(cpus: float, gpus: float, fit: int) -> None:
    assert Node("a", "10.0.0.1", 8.0, 2.0).slots(cpus, gpus) == fit


RUN = """
import os, signal, sys, time
def end(number, frame): raise SystemExit(143)
signal.signal(signal.SIGTERM, end)
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"  # not heeded
from fedsim.cluster.connecting import connected, ray_module
with connected("local", cpus=2) as cluster:
    assert cluster.local and cluster.slots(0.5) == {cluster.nodes[0].id: 4}
    ray = ray_module()
    assert ray.get_runtime_context().gcs_address != "127.0.0.1:1"
    folder = ray._private.worker._global_node.temp_dir
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    busy = ray.remote(lambda: time.sleep(60)).remote()
    ray.wait([busy], timeout=0.5)
    print("ready", folder, flush=True)
    ray.get(busy)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, None)])
def test_nothing_is_left_of_a_local_cluster_when_a_run_is_interrupted(how: signal.Signals, code: int | None) -> None:
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUN],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    word, _, folder = run.stdout.readline().strip().partition(" ")
    assert word == "ready", run.communicate()[1][-2000:]
    began = _descendants(run.pid)
    assert len(began) >= 5
    # As a terminal does, to all of its processes at once.
    (os.killpg if how == signal.SIGINT else os.kill)(run.pid, how)
    _, errors = run.communicate(timeout=30)
    if code is None:  # Ray's own helpers notice by themselves, the last of them after some ten seconds
        deadline = time.monotonic() + 40
        while began & set(_processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        shutil.rmtree(folder)  # as the next run would, after a while
    else:
        assert run.returncode in (code, -how), errors[-2000:]
        assert not Path(folder).exists()
    assert not began & set(_processes())


def _processes() -> dict[tuple[int, int], int]:
    """Processes that run, by their number and start, and their parents' numbers."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(entry.name), int(fields[19])] = int(fields[1])
    return found


def _descendants(of: int) -> set[tuple[int, int]]:
    there, known = _processes(), {of}
    while True:
        more = {number for (number, _), parent in there.items() if parent in known} - known
        if not more:
            return {key for key in there if key[0] in known - {of}}
        known |= more
