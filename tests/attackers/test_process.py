"""Attacks in a process of their own: the same bits, nothing of the run in reach, and one that dies, dies alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import plugins
from fedsim.adversaries.base import Reconstruction
from fedsim.adversaries.storage import JobStore
from fedsim.attack import clients_of
from fedsim.attackers import launching, wire
from fedsim.attackers.base import Failure
from fedsim.attackers.hiring import Served
from fedsim.attackers.inline import InlineAttacker
from fedsim.attackers.process import ProcessAttacker
from fedsim.attackers.rebuilding import described, rebuilt
from fedsim.attacks import run_attacks
from fedsim.experiment import AdversaryEntry, Component
from fedsim.runs import RunFolder
from fedsim.simulation import Outcome, simulate


class Screen:
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.warnings: list[str] = []

    def rounds(self, *_: Any) -> None: ...

    def attack(self, *said: Any) -> None:
        self.said.append(said)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def attacked(site: Path, small: Any, tmp_path: Path) -> Any:
    """`attacked("spy", fault="exits")` -> the outcome of a run, its folder, and what was shown."""

    def run(name: str, isolation: str = "process", to: str = "run", **settings: Any) -> tuple[Outcome, Path, Screen]:
        plugin = Component(name, plugins.load("adversaries", name)(**settings))
        entry = AdversaryEntry("spy", plugin, "server", (0, 1), (1, 2), ("labels",))
        base = small(rounds=2, scores={"lpips": "off"}, runtime={"isolation": isolation}, clients={"count": 2})
        screen = Screen()
        folder = RunFolder.create(tmp_path / to)
        return simulate(replace(base, adversaries=(entry,)), folder, screen), folder.path, screen

    return run


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


# --- the same bits --------------------------------------------------------------------------------------------------


def test_an_inversion_gives_the_same_bits_in_either_place(small: Any, tmp_path: Path) -> None:
    settings = plugins.load("adversaries", "geiping")(iterations=12)
    entry = AdversaryEntry("geiping", Component("geiping", settings), "link", (0,), (1,), ("labels",))
    experiment = replace(small(rounds=1, scores={"lpips": "off"}), adversaries=(entry,))
    folder = RunFolder.create(tmp_path / "run")
    (line,) = simulate(experiment, folder, Screen()).attacks
    store, device = JobStore(folder.captures, folder.jobs), torch.device("cpu")
    words = described(entry.plugin)
    assert words is not None
    found = []
    for attacker in (InlineAttacker(settings, store, device), ProcessAttacker(words, store, device)):
        heard: list[tuple[int, int, str]] = []
        one = attacker.attack(line["job"], 7, lambda *said, heard=heard: heard.append(said))  # type: ignore[misc]
        attacker.close()
        assert isinstance(one, Reconstruction)
        found.append((one, heard))
    (here, heard_here), (there, heard_there) = found
    for name in ("images", "labels", "initial", "raw"):
        assert (getattr(here, name) is None) == (getattr(there, name) is None)
        assert getattr(here, name) is None or torch.equal(getattr(here, name), getattr(there, name))
    assert here.images is not None and here.images.std() > 0
    plain = [{**vars(one), "images": 0, "labels": 0, "initial": 0, "raw": 0} for one in (here, there)]
    assert plain[0] == plain[1]
    assert heard_here == heard_there != []


def test_a_whole_run_has_the_same_lines_in_either_place(attacked: Any) -> None:
    """Answers put together, one of which is none, included."""
    here, _, _ = attacked("mean", "none", "here")
    there, _, screen = attacked("mean", "process", "there")
    assert untimed(here.attacks) == untimed(there.attacks)
    assert [line["adversary"] for line in there.attacks] == ["spy-a", "spy-b"] * 2
    assert [line["status"] for line in there.attacks] == ["done", "failed"] * 2
    assert "neither images nor labels" in there.attacks[1]["error"]
    assert there.attacks[0]["psnr"] != there.attacks[2]["psnr"]
    assert {said[0] for said in screen.said} >= {"spy, client 0, round 1", "spy-a, client 0, rounds 1 and 2"}


# --- what is in reach -----------------------------------------------------------------------------------------------


def test_the_process_has_nothing_of_the_run(
    attacked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    if launching._zygote is not None:
        launching._zygote.stop()  # the next one is started with what follows in its parent's reach
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SECRET_OF_MINE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedsim", "run", str(tmp_path / "experiment.toml")])
    with (tmp_path / "open").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        outcome, run, _ = attacked("spy", run=str(tmp_path / "run"))
    for line in outcome.attacks:
        view = line["notes"]
        assert line["status"] == "done" and line["psnr"] is not None, "scoring has the truth"
        assert (view["argv"], view["folder"]) == (["-c"], "/")
        assert view["number"] != os.getpid()
        assert view["threads"] == torch.get_num_threads()
        assert "FEDSIM_DATA" not in view["environment"] and "SECRET_OF_MINE" not in view["environment"]
        words = json.dumps([view["command"], view["environment"], view["first_environment"], view["ends"]])
        assert str(tmp_path) not in words.replace(str(site), "")
        assert sum(end.startswith("socket:") for end in view["ends"].values()) == 1
        assert len(view["ends"]) <= 5, "three streams, the socket, and the folder that is being listed"
        forbidden = {"fedsim.scoring", "fedsim.simulation", "fedsim.truth", "fedsim.attacks", "pytest"}
        assert not forbidden & set(view["modules"])
        assert "__main__" in view["main"] and ".py" not in view["main"], "no script of the user's is run again"
        assert "truth" not in view["in_run"] and "captures" in view["in_run"]
        assert not any(name.startswith(".fedsim") for name in view["in_run"])
    assert len({line["notes"]["number"] for line in outcome.attacks}) == 1, "one process for each adversary"
    assert len(list((run / "truth").iterdir())) == 4
    assert not list(tmp_path.glob(".fedsim-truth-*"))


def test_a_process_sees_the_devices_of_now(attacked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those that were visible when the process was started that all others are copies of."""
    launching.start_early()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    outcome, _, _ = attacked("spy")
    seen = outcome.attacks[0]["notes"]["environment"]
    assert {key: value for key, value in seen.items() if key.endswith("_VISIBLE_DEVICES")} == {
        **{key: value for key, value in os.environ.items() if key.endswith("_VISIBLE_DEVICES")},
        "CUDA_VISIBLE_DEVICES": "7",
    }


def test_two_adversaries_never_share_a_process(site: Path, small: Any, tmp_path: Path) -> None:
    plugin = Component("spy", plugins.load("adversaries", "spy")())
    entries = tuple(AdversaryEntry(name, plugin, "server", (0,), (1,)) for name in ("one", "two"))
    experiment = replace(small(rounds=1, scores={"lpips": "off"}), adversaries=entries)
    one, two = simulate(experiment, RunFolder.create(tmp_path / "run"), Screen()).attacks
    assert one["notes"]["number"] != two["notes"]["number"]


def test_only_what_a_piece_of_work_is_made_of_is_served(attacked: Any) -> None:
    _, run, _ = attacked("mean")
    store = JobStore(run / "captures", run / "jobs")
    jobs = sorted(path.stem for path in (run / "jobs").iterdir())
    served = Served(store, jobs[:1], [wire.packed({"": Reconstruction(None, torch.tensor([1]), 0.0, 1)})])
    (seen,) = json.loads(store.read("job", jobs[0]))["observations"]
    assert "refused" in served.answer({"want": "observation", "at": seen}).header, "not before its job"
    assert served.answer({"want": "job", "at": jobs[0]}).body == store.read("job", jobs[0])
    assert served.answer({"want": "observation", "at": seen}).body == store.read("observation", seen)
    others = [one for one in store.captured() if one != seen]
    for asked in [
        ("job", jobs[1]),
        ("observation", others[0]),
        ("answer", 1),
        ("answer", -1),
        ("job", "../experiment"),
    ]:
        assert "refused" in served.answer(dict(zip(("want", "at"), asked, strict=True))).header
    assert served.fault is None
    assert "answers" in served.answer({"want": "answer", "at": 0}).header


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raises", "TypeError: not this one"),
        ("killed", "the attack's process ended with signal 9 (SIGKILL); perhaps the machine ran out of memory"),
        ("exits", "the attack's process ended by itself with code 7"),
        ("babbles", "the attack's process sent what is no answer"),
    ],
)
def test_an_attack_that_fails_fails_alone(attacked: Any, fault: str, error: str) -> None:
    outcome, run, screen = attacked("spy", fault=fault)
    assert [line["status"] for line in outcome.attacks] == ["failed", "done", "failed", "done"]
    assert {line["error"] for line in outcome.attacks} == {error, None}
    assert f"adversary 'spy' failed on client 0, round 1: {error}" in screen.warnings
    assert len(list((run / "truth").iterdir())) == 4


def test_a_process_that_dies_over_a_batch_is_replaced(attacked: Any) -> None:
    outcome, _, screen = attacked("spy", fault="dies together")
    assert [line["status"] for line in outcome.attacks] == ["done"] * 4
    assert screen.warnings == [
        "adversary 'spy' failed on 4 jobs at once and runs them one by one: "
        "the attack's process ended with signal 11 (SIGSEGV)"
    ]


def test_a_damaged_file_is_named_to_the_user_and_not_to_the_process(attacked: Any) -> None:
    outcome, run, _ = attacked("spy")
    store, job = JobStore(run / "captures", run / "jobs"), outcome.attacks[0]["job"]
    (seen,) = json.loads(store.read("job", job))["observations"]
    (run / "captures" / f"{seen}.safetensors").write_bytes(b"x")
    attacker = ProcessAttacker({"name": "spy"}, store, torch.device("cpu"))
    found = attacker.attack(job, 0, lambda *_: None)
    attacker.close()
    assert isinstance(found, Failure) and found.kind == "FedsimError"
    assert str(run) in found.text and "damaged" in found.text


def test_an_interrupt_ends_the_process_and_brings_the_truth_back(
    attacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, run, _ = attacked("spy")
    hired: list[int] = []

    def interrupted(self: Screen, name: str, done: int, total: int, note: str) -> None:
        if note == "half":
            assert not (run / "truth").exists()
            assert launching._zygote is not None
            hired.extend(int(one) for one in children(launching._zygote.process.pid))
            raise KeyboardInterrupt

    entry = AdversaryEntry("again", Component("spy", plugins.load("adversaries", "spy")()), "server", (0,), (1,))
    from fedsim.attack import Attack
    from fedsim.experiment_file import from_table

    experiment = from_table({"rounds": 1, "data": {"name": "digits"}, "model": {"name": "mlp"}})
    attack = Attack(entry, outcome.attacks[0]["job"], (0,), (1,))
    monkeypatch.setattr(Screen, "attack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_attacks([attack], experiment, RunFolder(run), torch.device("cpu"), Screen(), print)
    assert hired and not any(Path(f"/proc/{one}").exists() for one in hired)
    assert len(list((run / "truth").iterdir())) == 4


def children(number: int) -> list[str]:
    return Path(f"/proc/{number}/task/{number}/children").read_text().split()


# --- plugins in words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names("adversaries"))
def test_what_ships_can_be_made_again(name: str) -> None:
    from fedsim.experiment_file import component

    plugin = component("adversaries", name, [])
    words = described(plugin)
    assert words is not None
    assert rebuilt(json.loads(json.dumps(words))) == plugin.settings


def test_settings_are_made_again_to_the_last_bit(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spy = plugins.load("adversaries", "spy")(weights=(0.1 + 0.2, 5e-324), start_file="a/b", run="here")
    words = described(Component("spy", spy))
    assert words is not None
    # Another process works elsewhere, so what is named as a path is made whole; other texts are left alone.
    assert rebuilt(words) == replace(spy, start_file=str(tmp_path / "a" / "b"))
    assert rebuilt(words).weights == (0.30000000000000004, 5e-324)


def test_a_class_that_is_not_installed_runs_here_and_that_is_said_once(attacked: Any, site: Path) -> None:
    spy = plugins.load("adversaries", "spy")
    assert described(Component("mean", spy())) is None, "another one is installed by that name"
    assert described(Component("nobody", spy())) is None
    assert described(Component("spy", spy(run={1}))) is None, "JSON has no sets"


def test_a_run_with_such_a_class_works_and_warns(site: Path, small: Any, tmp_path: Path) -> None:
    plugin = Component("nobody", plugins.load("adversaries", "spy")())
    entry = AdversaryEntry("x", plugin, "server", (0, 1), (1,))
    screen = Screen()
    experiment = replace(small(rounds=1, scores={"lpips": "off"}), adversaries=(entry,))
    outcome = simulate(experiment, RunFolder.create(tmp_path / "run"), screen)
    assert [line["notes"]["number"] for line in outcome.attacks] == [os.getpid()] * 2
    assert screen.warnings == [
        "adversary 'x' is not installed as a plugin, so its attacks run in the simulation's own process"
    ]


def test_whose_data_an_attack_is_after_is_what_its_job_says(attacked: Any, tmp_path: Path) -> None:
    """A plugin may make a job of other observations than the one that it was shown last."""
    from fedsim.adversaries.base import Job
    from fedsim.attacks import attacks_on

    _, run, _ = attacked("spy")
    store = JobStore(run / "captures", run / "jobs")
    first, last = sorted((store.observation(one) for one in store.captured()), key=lambda one: (one.round, one.client))[
        ::3
    ]
    spy = plugins.load("adversaries", "spy")

    class Other(spy):  # type: ignore[misc, valid-type]
        def capture(self, seen: Any) -> Any:
            yield Job((first, last))

    entry = AdversaryEntry("x", Component("x", Other()), "server", (0,), (1,))
    (attack,) = attacks_on(first, entry, store, print)
    assert (attack.clients, attack.rounds) == (clients_of(last), (last.round,)) == ((1,), (2,))
