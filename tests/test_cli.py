"""The command line: what it lists, what it checks, and the code that it ends with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from asking import adversary, ask, document

import fedsim
from fedsim import cli, plugins
from fedsim.errors import DataUnavailable, FedsimError
from fedsim.experiment_file import shipped
from fedsim.sweeps import file as sweeps

KINDS = ("experiments", "sweeps", *plugins.KINDS)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def valid(tmp_path: Path) -> str:
    file = tmp_path / "experiment.toml"
    file.write_text(document(tail=adversary()))
    return str(file)


# --- list ----------------------------------------------------------------------------------------------------------


def entries(text: str) -> list[list[str]]:
    """Name and words of each entry; its settings stand below it, indented further."""
    return [line.split(maxsplit=1) for line in text.splitlines() if line[:2] == "  " and line[2:3] != " "]


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_everything_of_a_kind_and_says_what_it_is(kind: str, capsys: Capture) -> None:
    answer = ask(capsys, "list", kind)
    assert (answer.code, answer.err) == (0, "")
    found = entries(answer.out)
    known = {"experiments": shipped, "sweeps": sweeps.shipped}.get(kind, lambda: plugins.names(kind))()
    assert [entry[0] for entry in found] == known
    for name, *words in found:
        assert words, f"{name} says nothing"
        assert "cannot be imported" not in words[0]


@pytest.mark.parametrize("kind", KINDS)
def test_list_as_json_holds_the_same(kind: str, capsys: Capture) -> None:
    answer = ask(capsys, "list", kind, "--json")
    found = json.loads(answer.out)[kind]
    assert answer.code == 0
    assert [entry["name"] for entry in found] == [entry[0] for entry in entries(ask(capsys, "list", kind).out)]
    for entry in found:
        assert all(isinstance(entry[key], str) and entry[key] for key in ("name", "what", "from"))
        assert entry["from"] == f"fedsim-adversarial {fedsim.__version__}"


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_list_of_a_kind_names_every_setting(kind: str, capsys: Capture) -> None:
    text = ask(capsys, "list", kind).out
    for entry in json.loads(ask(capsys, "list", kind, "--json").out)[kind]:
        settings = [field.name for field in fields(plugins.load(kind, entry["name"])) if field.init]
        assert list(entry["settings"]) == settings
        start = text.index(f"  {entry['name']} ")
        below = text[start:].split("\n  ", 2)[1] if settings else ""
        for setting in settings:
            assert setting in below, (entry["name"], setting)


def test_a_setting_without_a_default_is_not_shown_with_one(capsys: Capture) -> None:
    """`path = "required"` and `size = null` read like values that one could write into a file."""
    text = ask(capsys, "list", "datasets").out
    assert 'path = "required"' not in text
    assert "null" not in text


def test_list_without_a_kind_lists_all(capsys: Capture) -> None:
    answer = ask(capsys, "list")
    headers = [line.rstrip(":") for line in answer.out.splitlines() if not line.startswith(" ")]
    assert (answer.code, headers) == (0, list(KINDS))
    assert set(json.loads(ask(capsys, "list", "--json").out)) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_is_a_whole_sentence(kind: str, capsys: Capture) -> None:
    """`et al.` does not end one, and neither does an open bracket."""
    for entry in json.loads(ask(capsys, "list", kind, "--json").out)[kind]:
        what = entry["what"]
        assert not what.endswith(("et al", "e.g", "i.e", "vs")), entry
        assert what.count("(") == what.count(")"), entry
        assert "\n" not in what


@pytest.mark.parametrize(
    ("word", "meant"),
    [("model", "models"), ("dataset", "datasets"), ("adversery", "adversaries"), ("experiment", "experiments")],
)
def test_list_of_an_unknown_kind_is_answered_with_the_nearest(word: str, meant: str, capsys: Capture) -> None:
    answer = ask(capsys, "list", word)
    assert (answer.code, answer.out) == (2, "")
    assert answer.problems == [f"list: there is no kind '{word}'; did you mean '{meant}'?"]


# --- check ---------------------------------------------------------------------------------------------------------


def test_check_says_who_sees_what(valid: str, capsys: Capture) -> None:
    answer = ask(capsys, "check", valid)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == f"{valid}: valid"
    sees = [line.split(maxsplit=1)[1] for line in lines if line.startswith("  sees ")]
    granted = [line for line in lines if line.startswith("  is granted ")]
    hidden = [line for line in lines if line.startswith("  does not see ")]
    said = (
        "'geiping' is an eavesdropper on the link between the server and client 0: it attacks client 0 in round 1 and"
    )
    assert f"{said} changes no message." in lines
    assert answer.out.count("global model") == 1, "what the lines below say, no paragraph says as well"
    assert len(sees) == 5
    assert any("update" in line for line in sees)
    assert any("global model" in line for line in sees)
    assert len(granted) == 1
    assert "labels" in granted[0]
    assert any("which defenses the client uses, with their settings" in line for line in hidden)
    assert not any("BatchNorm" in line for line in lines), "the model has none"


def test_check_says_more_of_a_model_with_batchnorm(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document(tail=adversary()).replace('"mlp"', '"resnet18"'))
    # A mode that either policy grants what it needs.
    mode = ("--set", "adversaries.0.batchnorm=infer", "--set", 'adversaries.0.knows=["labels", "running_statistics"]')
    local = ask(capsys, "check", str(file), "--set", "clients.batchnorm=local", *mode).out
    shared = ask(capsys, "check", str(file), "--set", "clients.batchnorm=share_batch", *mode).out
    words = "the BatchNorm statistics of the private batch"
    assert any(words in line and "does not see" in line for line in local.splitlines())
    assert any(words in line and line.startswith("  sees") for line in shared.splitlines())


def test_check_says_who_defends_himself(valid: str, capsys: Capture) -> None:
    answer = ask(capsys, "check", valid, "--set", 'clients.groups=[{members=[2], defenses=["gradient_noise"]}]')
    assert "client 2 defends itself with gradient_noise" in answer.out
    everyone = ask(capsys, "check", valid, "--set", 'clients.defenses=["gradient_noise"]', "--set", "clients.count=9")
    assert "every client defends itself with gradient_noise" in everyone.out


def test_check_without_an_adversary_says_so(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document())
    assert "No adversary." in ask(capsys, "check", str(file)).out


def test_check_as_json_holds_the_resolved_experiment_and_the_threat_models(valid: str, capsys: Capture) -> None:
    answer = ask(capsys, "check", valid, "--json", "--set", "seed=7")
    found = json.loads(answer.out)
    assert (answer.code, answer.err) == (0, "")
    assert found["experiment"]["seed"] == 7
    assert found["experiment"]["clients"]["batch_size"] == 4
    [view] = found["who_sees_what"]
    assert (view["adversary"], view["vantage"], view["targets"], view["rounds"]) == ("geiping", "link", [0], [1])
    assert view["knows"] == ["the labels of the private batch"]
    assert "which defenses the client uses, with their settings" in view["does_not_see"]
    assert not set(view["sees"]) & set(view["does_not_see"])
    assert found["notes"] == []


SECURE = """
[server.secure_aggregation]
name = "secagg+"

[[adversaries]]
id = "cabal"
name = "geiping"
vantage = "server"
targets = [0, 1]
rounds = [1]
knows = ["labels"]
"""


def check_secure(capsys: Capture, folder: Path, *settings: str) -> list[str]:
    file = folder / "experiment.toml"
    file.write_text(document({("clients", "count"): "10"}, tail=SECURE))
    answer = ask(capsys, "check", str(file), *(part for one in settings for part in ("--set", one)))
    assert (answer.code, answer.err) == (0, "")
    return answer.out.splitlines()


def noted(lines: list[str]) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in lines if line.startswith("  note ")]


def test_check_says_what_secure_aggregation_withstands_and_what_exceeds_it(tmp_path: Path, capsys: Capture) -> None:
    lines = check_secure(capsys, tmp_path)
    made = "it withstands up to 10 % of the clients working together with a malicious server, and 30 % dropping out"
    assert f"    {made}" in lines
    assert noted(lines) == ["what is attacked is the sum of all clients of the round, not clients 0 and 1 alone"]
    assert "  does not see  any single client's update" in lines
    assert not noted(check_secure(capsys, tmp_path, "clients.dropout=0.3", 'adversaries.0.targets="all"'))
    (gone,) = noted(check_secure(capsys, tmp_path, "clients.dropout=0.31", 'adversaries.0.targets="all"'))
    assert gone.startswith("clients.dropout = 0.31 is more than the dropout = 0.3 that")


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (["adversaries.0.colluders=[9]"], "9 honest clients: only their sum is known"),
        (["adversaries.0.colluders=[9]", "clients.per_round=9"], "8 to 9 honest clients: only their sum is known"),
        (
            ["adversaries.0.colluders=[9]", "clients.dropout=0.1"],
            "9 honest clients: only their sum is known, unless all but one drop out",
        ),
        (
            ["adversaries.0.colluders=[1,2,3,4,5,6,7,8,9]", "adversaries.0.targets=[0]"],
            "1 honest client: what is left of the sum is the update of client 0",
        ),
        (
            ["adversaries.0.colluders=[2,3,4,5,6]", "clients.per_round=6"],
            "up to 5 honest clients in a round: only their sum is known, unless there is just one",
        ),
    ],
)
def test_check_counts_the_honest_clients(settings: list[str], note: str, tmp_path: Path, capsys: Capture) -> None:
    lines = check_secure(capsys, tmp_path, *settings, 'adversaries.0.derive="collusion"')
    assert note in noted(lines)
    assert "  does not see  any other client's update" in lines
    exceeds = [line for line in noted(lines) if re.search(r"colluders? in rounds of", line)]
    assert len(exceeds) == ("colluders=[9]" not in settings[0] or "per_round" in settings[-1])
    assert any("works together with client" in line and "derives single updates by collusion" in line for line in lines)


def test_check_writes_nothing(valid: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ask(capsys, "check", valid).code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["experiment.toml"]


@pytest.mark.parametrize("name", shipped())
def test_what_ships_passes_its_check_by_name(name: str, capsys: Capture) -> None:
    answer = ask(capsys, "check", name)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{name}: valid\n")


# --- exit codes ----------------------------------------------------------------------------------------------------


def test_version(capsys: Capture) -> None:
    answer = ask(capsys, "--version")
    assert (answer.code, answer.out) == (0, f"fedsim {fedsim.__version__}\n")
    project = tomllib.loads((Path(fedsim.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == fedsim.__version__


@pytest.mark.parametrize("command", ["run", "attack", "report", "list", "check", "doctor"])
def test_every_command_explains_itself(command: str, capsys: Capture) -> None:
    assert command in ask(capsys, "--help").out
    answer = ask(capsys, command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"usage: fedsim {command}")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("run",),
        ("check",),
        ("attack", "x"),
        ("report",),
        ("run", "x", "--nonsense"),
        ("--nonsense",),
    ],
    ids=" ".join,
)
def test_words_that_make_no_command_are_bad_input(arguments: tuple[str, ...], capsys: Capture) -> None:
    answer = ask(capsys, *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("usage: fedsim")
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FedsimError("it broke"), 1),
        (DataUnavailable("it broke"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError("it broke"), None),
    ],
)
def test_an_error_ends_with_its_code(
    error: BaseException, code: int | None, valid: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: what nobody foresaw is a mistake of the program, and shows where it happened."""

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr("fedsim.commands.run._run", fail)
    if code is None:
        with pytest.raises(type(error)):
            cli.main(["run", valid, "--out", "nowhere"])
        return
    answer = ask(capsys, "run", valid, "--out", "nowhere")
    assert (answer.code, answer.out) == (code, "")
    assert answer.err == ("fedsim: interrupted\n" if code == 130 else "it broke\n")


@pytest.mark.parametrize("code", [0, 3])
def test_the_code_of_a_run_is_the_programs(
    code: int, valid: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.commands.run._run", lambda *_: code)
    assert ask(capsys, "run", valid, "--out", "nowhere").code == code


def test_sigterm_ends_with_143() -> None:
    code = (
        "import os, signal, fedsim.commands.list as command\nfrom fedsim.cli import main\n"
        "command.run = lambda options: os.kill(os.getpid(), signal.SIGTERM) or 0\n"
        "raise SystemExit(main(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    """`fedsim list | head -1` must not print a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "fedsim", "list"], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_the_program_is_installed_under_its_name_and_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fedsim", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fedsim {fedsim.__version__}\n"
    script = Path(sys.executable).parent / "fedsim"
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout == done.stdout


# --- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_as_json_is_well_formed_and_finds_what_it_must(capsys: Capture) -> None:
    answer = ask(capsys, "doctor", "--json")
    findings = json.loads(answer.out)
    assert answer.err == ""
    assert all(set(finding) == {"state", "what", "detail"} for finding in findings)
    assert all(finding["detail"] for finding in findings)
    states = {finding["what"]: finding["state"] for finding in findings}
    assert set(states.values()) <= {"ok", "low", "absent", "broken"}
    for what in ("python", "processor", "disk", "torch", "flwr", "embedded data", "models", "adversaries"):
        assert states[what] in ("ok", "low")
    assert any(what.startswith("LPIPS") for what in states)
    assert answer.code == (1 if "broken" in states.values() else 0)


def test_doctor_in_words_says_the_same(capsys: Capture) -> None:
    answer = ask(capsys, "doctor")
    found = {finding["what"] for finding in json.loads(ask(capsys, "doctor", "--json").out)}
    assert answer.code in (0, 1)
    assert all(any(what in line for line in answer.out.splitlines()) for what in found)


def test_doctor_finds_nothing_broken_in_a_whole_installation(capsys: Capture) -> None:
    broken = [one for one in json.loads(ask(capsys, "doctor", "--json").out) if one["state"] == "broken"]
    assert broken == []
