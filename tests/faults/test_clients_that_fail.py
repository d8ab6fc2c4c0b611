"""A client that raises: a dropout with its reason; below the minimum the round is skipped, and the model unchanged.

Clients that take their process along, or never answer, are those of `test_workers`: in one process with the server,
they would take that along.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from crashing import begun, hashes, made, table
from faulty import Tally

from fedsim.runs import read_lines

pytestmark = pytest.mark.usefixtures("strangers_installed")


def content(least: int, **server: Any) -> dict[str, Any]:
    """Client 1 fails in round 2."""
    return table(
        rounds=3,
        save_rounds=[1, 2, 3],
        model={"name": "mlp", "hidden": [8]},
        clients={
            "count": 4, "local_steps": 1, "batch_size": 8,
            "groups": [{"members": [1], "local_steps": 1, "batch_size": 8, "defenses": ["failing"]}],
        },
        server={"min_clients": least, **server},
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["off", "secagg+"])
def test_a_client_that_raises_is_a_dropout(mode: str, tmp_path: Path, tally: Tally) -> None:
    tally("client crash, exception, hang")
    run = tmp_path / "run"
    assert begun(made("failing", content(3, secure_aggregation=mode)), run).code == 0
    lines = read_lines(run / "rounds.jsonl")
    assert [len(line["clients"]) for line in lines] == [0, 4, 3, 4]
    (dropout,) = lines[2]["dropouts"]
    assert dropout["client"] == 1 and "RuntimeError: this client has no more memory" in dropout["reason"]
    assert not any("skipped" in line for line in lines)


@pytest.mark.parametrize("mode", ["off", "secagg+"])
def test_below_the_minimum_the_round_is_skipped(mode: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert begun(made("failing", content(4, secure_aggregation=mode)), run).code == 0
    lines = read_lines(run / "rounds.jsonl")
    assert [bool(line.get("skipped")) for line in lines] == [False, False, True, False]
    assert "the model stays as it was" in lines[2]["skipped"]
    assert lines[2]["test_loss"] == lines[1]["test_loss"] != lines[3]["test_loss"]
    from fedsim.tensorfile import unpack

    models = [unpack((run / "checkpoints" / f"round-{one}.safetensors").read_bytes())[0] for one in (1, 2, 3)]
    plain = [{name: value.numpy().tobytes() for name, value in model.items()} for model in models]
    assert plain[0] == plain[1] != plain[2]
    assert hashes(run)
