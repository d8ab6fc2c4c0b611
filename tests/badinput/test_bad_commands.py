"""Commands that cannot be meant: clusters at no address, runs that are none, folders that are damaged, logs of nobody.

What an experiment file can get wrong is in `test_bad_input`, `test_bad_files` and `test_bad_numbers`.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from asking import adversary, ask, check_refused, document
from badinput.judging import SECONDS, told_of

Capture = pytest.CaptureFixture[str]

ADDRESSES = (
    *("", " ", "nonsense", "localhost", "Local", "auto,local", "local:x", "ray://", "ray://host", "host:port", ":6379"),
    *("host:999999", "http://host:6379", "a b:6379", "host:6379/x", "ray://host:10001,host2:10001", "x" * 5000, "\n"),
)


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment file, in a folder where nothing is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedsim.commands.run.execute", lambda *_, **__: pytest.fail("the run was started"))
    file = tmp_path / "good.toml"
    file.write_text(document(tail=adversary()))
    return file


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that was broken off before it had done anything."""
    folder = tmp_path / "broken-1"
    for part in ("captures", "jobs", "truth", "reconstructions"):
        (folder / part).mkdir(parents=True)
    (folder / "experiment.toml").write_text(document(tail=adversary()))
    return folder


class Started(Exception):
    """A run goes on. In tests it does not."""


def started(*arguments: object, **more: object) -> int:
    raise Started


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line with which the command is refused."""
    answer = ask(capsys, *arguments)
    assert (answer.code, len(answer.problems)) == (2, 1), answer
    assert answer.problems[0].isprintable() and len(answer.problems[0]) < 1100
    return answer.problems[0]


# --- --ray ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: repr(address)[:20])
@pytest.mark.parametrize("command", ["run", "resume", "attack", "sweep", "doctor"])
def test_what_is_no_address_of_a_cluster_is_refused(
    command: str, address: str, good: Path, run_folder: Path, capsys: Capture
) -> None:
    arguments = {
        "run": ["run", str(good)],
        "resume": ["resume", str(run_folder)],
        "attack": ["attack", str(run_folder), "--adversary", "geiping"],
        "sweep": ["sweep", "secagg/sums", "--plan"],
        "doctor": ["doctor"],
    }
    problem = refused(capsys, *arguments[command], "--ray", address)
    assert "must be local, auto, ray://HOST:PORT or HOST:PORT" in problem or len(address) > 1000
    assert "ray" in problem
    assert not list(run_folder.glob("*.json*"))


# --- [runtime] and [logging] ---------------------------------------------------------------------------------------

WORDS = {
    # the section, the key, what is said of it
    "grid": ("runtime", "grid", '"rey"', "did you mean 'ray'?"),
    "grid, address": ("runtime", "grid", '"local"', "must be one of 'inline' or 'ray'"),
    "grid, true": ("runtime", "grid", "true", "must be one of"),
    "ray": ("runtime", "ray", '"cluster"', "must be local, auto"),
    "ray, true": ("runtime", "ray", "true", "text in quotes"),
    "ray, port alone": ("runtime", "ray", "6379", "text in quotes"),
    "attacks": ("runtime", "attacks", '"durin"', "did you mean 'during'?"),
    "attacks, inline": ("runtime", "attacks", '"during"', 'use grid = "ray"'),
    "workers, inline": ("runtime", "workers", "2", 'use grid = "ray"'),
    "workers, word": ("runtime", "workers", '"all"', "whole number"),
    "GPUs, inline": ("runtime", "gpus_per_client", "0.5", 'use grid = "ray"'),
    "GPUs, more than one": ("runtime", "gpus_per_attack", "2", "at most 1"),
    "CPUs": ("runtime", "cpus_per_client", "0", "above 0"),
    "vectorized": ("runtime", "vectorized", "true", "must be one of 'off', 'on' or 'auto'"),
    "vectorized, misspelt": ("runtime", "vectorised", '"on"', "did you mean 'vectorized'?"),
    "isolation": ("runtime", "isolation", '"thread"', "must be one of 'process' or 'none'"),
    "checkpoints": ("runtime", "checkpoint_every", "-1", "at least 0"),
    "checkpoints, misspelt": ("runtime", "checkpoints_every", "1", "did you mean 'checkpoint_every'?"),
    "sinks, misspelt": ("logging", "sink", '["tensorboard"]', "did you mean 'sinks'?"),
    "sinks, text": ("logging", "sinks", '"tensorboard"', "must be a list"),
    "sinks, true": ("logging", "sinks", "true", "must be a list"),
}
SINKS = {
    "unknown": ('["tensorbord"]', "logging.sinks[0].name", "did you mean 'tensorboard'?"),
    "second unknown": ('["tensorboard", "x"]', "logging.sinks[1].name", "known: "),
    "number": ("[1]", "logging.sinks[0]", "a name or a table"),
    "no name": ("[{ x = 1 }]", "logging.sinks[0].name", "missing"),
    "setting": ('[{ name = "tensorboard", x = 1 }]', "logging.sinks[0].x", "unknown key"),
    "import path": ('["os:system"]', "logging.sinks[0].name", "known: "),
    "twice": ('["tensorboard", "tensorboard"]', "logging.sinks[1]", "twice"),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_word_of_the_runtime_is_refused(case: str, tmp_path: Path, capsys: Capture) -> None:
    section, key, value, words = WORDS[case]
    check_refused(capsys, tmp_path, document({(section, key): value}), f"{section}.{key}", words)


@pytest.mark.parametrize("case", SINKS)
def test_a_sink_of_nobody_is_refused(case: str, tmp_path: Path, capsys: Capture) -> None:
    value, key, words = SINKS[case]
    check_refused(capsys, tmp_path, document({("logging", "sinks"): value}), key, words)


def test_one_computation_on_many_processes_is_refused(tmp_path: Path, capsys: Capture) -> None:
    text = document({("runtime", "vectorized"): '"on"'}).replace("[runtime]\n", '[runtime]\ngrid = "ray"\n')
    check_refused(capsys, tmp_path, text, "runtime.vectorized", 'use grid = "inline"')


# --- runs that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["nowhere", "x" * 300, "file.txt", "file.txt/below", "empty", "a\0b", ""])
@pytest.mark.parametrize("command", ["resume", "attack", "report"])
def test_what_is_no_run_is_refused(command: str, folder: str, good: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file.txt").write_text("precious")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    more = ["--adversary", "geiping"] if command == "attack" else []
    refused(capsys, command, folder, *more)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_variable_that_is_not_set_is_no_run(
    good: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """`fedsim resume "$RUN"` must not go on with whatever run the shell stands in."""
    monkeypatch.chdir(run_folder)
    assert "empty" in refused(capsys, "resume", "")


def test_a_sweep_is_gone_on_with_in_another_way(good: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert "`fedsim sweep ... --out" in refused(capsys, "resume", str(tmp_path / "sweep"))


@pytest.mark.parametrize("folder", ["good.toml", "", "good.toml/below", "taken"])
def test_a_run_goes_on_in_a_run_folder_alone(folder: str, good: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("precious")
    assert refused(capsys, "run", str(good), "--resume", "--out", folder).startswith("--out")
    assert (tmp_path / "taken" / "notes.txt").read_text() == "precious"


def test_a_run_of_another_experiment_is_not_gone_on_with(good: Path, run_folder: Path, capsys: Capture) -> None:
    problem = refused(capsys, "run", str(good), "--resume", "--out", str(run_folder), "--set", "clients.count=5")
    assert "another experiment" in problem and "clients" in problem


def test_a_file_without_an_end_is_no_experiment(capsys: Capture) -> None:
    with told_of(SECONDS):
        assert "no experiment file" in refused(capsys, "check", "/dev/zero")


def test_a_file_of_another_kind_is_no_experiment(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as made:
        made.truncate(2**34)  # as large as a model may be; on the disk it takes nothing
    with told_of(SECONDS):
        assert "no experiment file" in refused(capsys, "run", str(file))


# --- folders that are damaged --------------------------------------------------------------------------------------

EXPERIMENTS = {
    "cut off": b"seed = 0\nrounds =",
    "empty": b"",
    "zeros": bytes(300),
    "not a text": b"\xff\xfe\x00",
    "another file": b'{"rounds": 1}',
    "no longer valid": b"rounds = 0\n",
}
MANIFESTS = {
    "cut off": b'{"status": "run',
    "empty": b"",
    "zeros": bytes(300),
    "not a text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "an exit in words": b'{"status": "running", "exit": "x", "resumed": []}',
}


@pytest.mark.parametrize("damage", EXPERIMENTS)
@pytest.mark.parametrize("command", ["resume", "attack", "run"])
def test_a_damaged_experiment_of_a_run_is_told_by_its_file(
    command: str, damage: str, good: Path, run_folder: Path, capsys: Capture
) -> None:
    (run_folder / "experiment.toml").write_bytes(EXPERIMENTS[damage])
    arguments = {
        "resume": ["resume", str(run_folder)],
        "attack": ["attack", str(run_folder), "--adversary", "geiping"],
        "run": ["run", str(good), "--resume", "--out", str(run_folder)],
    }
    answer = ask(capsys, *arguments[command])
    assert answer.code == 2 and answer.problems
    assert all(problem.startswith(f"{run_folder / 'experiment.toml'}") for problem in answer.problems), answer.err


@pytest.mark.parametrize("damage", MANIFESTS)
def test_a_run_goes_on_without_a_manifest_that_can_be_read(
    damage: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (run_folder / "manifest.json").write_bytes(MANIFESTS[damage])
    monkeypatch.setattr("fedsim.commands.run.execute", started)
    with pytest.raises(Started):
        ask(capsys, "resume", str(run_folder))


@pytest.mark.parametrize("code", ['"x"', "null", "[]", "1.5"])
def test_a_run_that_is_done_stays_done_whatever_it_says_of_its_end(
    code: str, good: Path, run_folder: Path, capsys: Capture
) -> None:
    (run_folder / "manifest.json").write_text(f'{{"status": "done", "exit": {code}}}')
    assert ask(capsys, "resume", str(run_folder)).code == 0


@pytest.mark.parametrize(
    "lines", [b"\xff\xfe\n", b"[1]\n3\nnull\n{}\n", b'{"round": "x", "clients": 3}\n', b'{"round', bytes(100)]
)
@pytest.mark.parametrize("file", ["rounds.jsonl", "attacks.jsonl", "timings.jsonl", "derived.jsonl", "manifest.json"])
def test_a_report_of_a_damaged_run_is_written_all_the_same(
    file: str, lines: bytes, run_folder: Path, capsys: Capture
) -> None:
    (run_folder / file).write_bytes(lines)
    answer = ask(capsys, "report", str(run_folder))
    assert answer.code == 0 and (run_folder / "report.html").is_file(), answer


# --- numbers and names on the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(
            (("report", "RUN", "--watch", "--every", number), "above 0")
            for number in ("0", "-1", "nan", "inf", "1e400")
        ),
        *((("sweep", "secagg/sums", "--plan", "--jobs", number), "at least 1") for number in ("0", "-1")),
        *((("sweep", "secagg/sums", "--plan", "--only", part), "axis=point") for part in ("", "x", "=", ",", "shown=")),
        (("sweep", "secagg/sums", "--plan", "--only", "show=x"), "did you mean 'shown'?"),
        (("sweep", "secagg/sums", "--plan", "--scale", "tinny"), "did you mean 'tiny'?"),
        (("sweep", "secagg/sum"), "did you mean 'secagg/sums'?"),
        (("sweep", "secagg/sums", "--out", ""), "--out: is empty"),
        (("sweep", "quickstart"), "fedsim run quickstart"),
        (("run", "secagg/sums"), "fedsim sweep secagg/sums"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_that_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], words: str, good: Path, run_folder: Path, capsys: Capture
) -> None:
    assert words in refused(capsys, *(str(run_folder) if one == "RUN" else one for one in arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "RUN", "--every", "x"),
        ("sweep", "secagg/sums", "--jobs", "1.5"),
        ("sweep", "secagg/sums", "--jobs", "many"),
        ("resume",),
        ("resume", "RUN", "another"),
        ("resume", "RUN", "--out", "x"),
        ("run", "FILE", "--ray"),
        ("run", "FILE", "--resumee"),
        ("resum", "RUN"),
    ],
    ids=" ".join,
)
def test_words_that_no_command_takes_are_refused(
    arguments: tuple[str, ...], good: Path, run_folder: Path, capsys: Capture
) -> None:
    answer = ask(capsys, *({"RUN": str(run_folder), "FILE": str(good)}.get(one, one) for one in arguments))
    assert answer.code == 2 and "usage: fedsim" in answer.err and "Traceback" not in answer.err


# --- before anything heavy is imported, and at once ----------------------------------------------------------------

SCRIPT = textwrap.dedent("""
    import sys, time
    from fedsim.cli import main
    for words in {lines!r}:
        start = time.process_time()
        code = main(words)
        took = time.process_time() - start
        heavy = sorted({{"torch", "ray", "flwr", "torchvision"}} & set(sys.modules))
        assert (code, heavy) == (2, []) and took < 2, (words, code, heavy, took)
""")


def test_all_of_it_is_answered_before_torch_and_ray_and_at_once(run_folder: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.toml"
    good.write_text(document())
    lines = [
        ["run", str(good), "--ray", "nonsense"],
        ["resume", str(run_folder), "--ray", "nonsense"],
        ["attack", str(run_folder), "--adversary", "geiping", "--ray", "nonsense"],
        ["sweep", "secagg/sums", "--ray", "nonsense"],
        ["resume", "nowhere"],
        ["run", str(good), "--resume", "--out", str(good)],
        ["run", str(good), "--resume", "--out", str(run_folder)],
        ["run", str(good), "--set", 'logging.sinks=["x"]'],
        ["run", str(good), "--set", "runtime.workers=2"],
        ["report", "nowhere", "--watch"],
    ]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(lines=lines)], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "something was written"
