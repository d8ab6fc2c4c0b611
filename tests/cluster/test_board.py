"""The board on which work in a cluster writes how far it is: it is written to seldom, read once, and may be lost."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fedsim.cluster import board
from fedsim.cluster.board import Board, Reader, Teller
from fedsim.cluster.connecting import connected, ray_module


class Written:
    """Stands for a board in the cluster."""

    def __init__(self) -> None:
        self.words: list[tuple[Any, ...]] = []
        self.tell = self

    def remote(self, *word: Any) -> None:
        self.words.append(word)


def test_news_are_the_last_words_and_told_once() -> None:
    own = Board()
    for done in range(3):
        own.tell("a", done, 9, "")
    own.tell("b", 1, 2, "half")
    assert own.news() == {"a": (2, 9, ""), "b": (1, 2, "half")}
    assert own.news() == {}


def test_each_piece_of_work_writes_twice_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    there = Written()
    one, other = Teller(there, "one"), Teller(there, "other")
    for step in range(100):
        one(step, 100, "")
        other(step, 100, "")
        now[0] += 0.0625
    assert [word[1] for word in there.words if word[0] == "one"] == list(range(0, 100, 8))
    assert len(there.words) == 26


def test_words_arrive_from_a_cluster_and_a_board_that_died_comes_back() -> None:
    pytest.importorskip("ray")
    heard: dict[str, list[tuple[int, int, str]]] = {"a": [], "b": []}
    listeners: Any = {name: lambda *said, name=name: heard[name].append(said) for name in heard}

    def tells(reader: Reader, word: tuple[int, int, str]) -> None:
        """Until it is heard: what is told to a board that is just dying is lost."""
        end = time.monotonic() + 30
        while word not in heard["a"]:
            assert time.monotonic() < end
            Teller(reader.handle, "a")(*word)
            Teller(reader.handle, "nobody listens to this")(1, 2, "")
            time.sleep(0.05)
            reader.read(listeners)

    with connected("local", cpus=1):
        reader = Reader()
        try:
            tells(reader, (1, 3, "first"))
            ray_module().kill(reader.handle, no_restart=False)
            tells(reader, (2, 3, "second"))
            assert heard["b"] == []
        finally:
            reader.close()
        reader.close()
