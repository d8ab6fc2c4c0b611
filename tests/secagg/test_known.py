"""What `fedsim check` tells of a secure aggregation before there are data: the same as a run's manifest has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from asking import ask

from fedsim.experiment_file import read
from fedsim.secagg.base import Layout, Terms
from fedsim.secagg.known import OF_THE_LAYOUT, known_facts

TEXT = """\
seed = 0
rounds = 2
[data]
name = "digits"
[model]
name = "mlp"
[clients]
count = 10
algorithm = "fedsgd"
batch_size = 3
[server]
learning_rate = 0.5
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "x.toml").write_text(TEXT)
    return str(tmp_path / "x.toml")


@pytest.mark.parametrize("mode", ["ideal", "secagg+", "ckks"])
@pytest.mark.parametrize("per_round", [10, 7])
def test_what_is_known_early_is_what_the_manifest_will_have(file: str, mode: str, per_round: int) -> None:
    if mode == "ckks":
        pytest.importorskip("tenseal")
    experiment = read(file, [f"server.secure_aggregation={mode}", f"clients.per_round={per_round}"])
    assert experiment.server.secure_aggregation is not None
    terms = Terms(1, per_round, 3, 1, Layout({"w": (5, 4)}))
    facts = experiment.server.secure_aggregation.settings.facts(terms)
    known = known_facts(experiment)
    assert known.pop("name") == mode
    assert known.items() <= {key: value for key, value in facts.items() if key not in OF_THE_LAYOUT}.items()
    told = {"min_survivors", "error_bound", "most_examples", "neighbours", "threshold", "trust", "bits"}
    assert told & set(known) == told & set(facts)


def test_the_bound_is_left_open_where_the_data_set_it(file: str) -> None:
    settings = ["server.secure_aggregation=secagg+", "clients.algorithm=fedavg"]
    known = known_facts(read(file, settings))
    assert "error_bound" not in known and known["threshold"] == 6
    given = read(file, [*settings, 'server.secure_aggregation={name="secagg+", most_examples=100}'])
    assert known_facts(given)["error_bound"] == pytest.approx(4.0 * 10 * 100 / 2**32, rel=1e-4)


def test_without_secure_aggregation_nothing_is_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert known_facts(read(file)) == {}
    assert "secure aggregation" not in ask(capsys, "check", file).out


def test_check_prints_a_line_of_it(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = ask(capsys, "check", file, "--set", "server.secure_aggregation=secagg+").out
    line = next(line for line in out.splitlines() if "secure aggregation" in line)
    assert line.startswith("  secure aggregation secagg+: every pair of 10 clients shares a mask; threshold 6: ")
    assert "fewer than 6 of 10 clients left is closed" in line
    assert "off by 2.8e-08 at most" in line
    both = ["--set", "server.secure_aggregation=secagg+", "--set", "clients.algorithm=fedavg"]
    assert "depends on the data's split" in ask(capsys, "check", file, *both).out
    out = ask(capsys, "check", file, "--json", "--set", "server.secure_aggregation=ideal").out
    assert '"min_survivors": 3' in out


def test_check_stays_light(file: str) -> None:
    code = (
        "import sys; from fedsim import cli; cli.main(['check', sys.argv[1], '--set', "
        "'server.secure_aggregation=secagg+']); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
