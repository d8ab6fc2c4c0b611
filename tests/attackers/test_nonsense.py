"""Whatever an attack's process says, the run goes on: it is an answer, a failure, or nonsense."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.adversaries.storage import JobStore
from fedsim.attackers import launching, wire
from fedsim.attackers.base import Failure
from fedsim.attackers.process import ProcessAttacker
from fedsim.attackers.wire import NONSENSE


class Speaker:
    """Stands for a process: what it says was said already."""

    def __init__(self, *said: bytes) -> None:
        self.socket, self._other = socket.socketpair()
        self._other.sendall(b"".join(said))

    def wait_for_word(self, seconds: float | None = None) -> bool:
        return True

    def end(self, at_once: bool) -> int:
        self.socket.close()
        self._other.close()
        return 0


def told(head: bytes, body: int = 0) -> bytes:
    return len(head).to_bytes(8, "big") + body.to_bytes(8, "big") + head


READY = told(b'{"ready": true}')


def nobody(done: int, total: int, note: str) -> None:
    pass


@pytest.mark.parametrize(
    "said",
    [
        told(b"[" * 100_000),  # deeper than the parser goes
        told(b"[]"),
        told(b"\xff"),
        told(b"{}", 2**41),
        told(json.dumps({"failed": 3}).encode()),
        told(json.dumps({"failed": ["too", "many", "words"]}).encode()),
        told(json.dumps({"failed": [{}, None]}).encode()),
        told(json.dumps({"answers": 3}).encode()),
        told(json.dumps({"something": "else"}).encode()),
    ],
)
def test_nonsense_is_a_failure_of_that_attack_alone(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker: Any = Speaker(READY, said)
    monkeypatch.setattr(launching, "launch", lambda: speaker)
    attacker = ProcessAttacker({"name": "mean"}, JobStore(tmp_path, tmp_path), torch.device("cpu"))
    assert attacker.attack("a", 0, nobody) == NONSENSE


def test_a_failure_has_its_kind_and_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker: Any = Speaker(READY, told(json.dumps({"failed": ["ValueError", "no"]}).encode()))
    monkeypatch.setattr(launching, "launch", lambda: speaker)
    attacker = ProcessAttacker({"name": "mean"}, JobStore(tmp_path, tmp_path), torch.device("cpu"))
    assert attacker.attack("a", 0, nobody) == Failure("ValueError", "no")


def test_what_is_sent_is_what_is_received() -> None:
    one, other = socket.socketpair()
    wire.send(one, {"a": [1]}, b"body")
    assert wire.receive(other) == wire.Message({"a": [1]}, b"body")
