"""Files that cannot be read, TOML that is none, lines that must be exact, and folders that are taken."""

from __future__ import annotations

import os
import struct
import time
import zipfile
from pathlib import Path

import pytest
from asking import HERE, adversary, ask, check_refused, document, marked

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line with which the command is refused."""
    answer = ask(capsys, *arguments)
    assert (answer.code, answer.out) == (2, ""), answer
    assert len(answer.problems) == 1, answer.err
    return answer.problems[0]


# --- the file itself -----------------------------------------------------------------------------------------------


def test_a_missing_file_is_told_from_its_neighbour(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "experiment.toml").write_text(document())
    missing = tmp_path / "experimant.toml"
    assert refused(capsys, "check", str(missing)) == (
        f"{missing}: no such file; did you mean '{tmp_path / 'experiment.toml'}'?"
    )


def test_a_missing_file_without_neighbours_is_told(tmp_path: Path, capsys: Capture) -> None:
    missing = tmp_path / "nowhere" / "experiment.toml"
    assert refused(capsys, "run", str(missing)).startswith(f"{missing}: no such file; ")


def test_a_name_that_ships_is_told_from_a_misspelt_one(capsys: Capture) -> None:
    assert refused(capsys, "check", "quikstart").endswith("did you mean 'quickstart'?")


def test_a_name_that_is_none_is_told(capsys: Capture) -> None:
    problem = refused(capsys, "run", "zzzzzz")
    assert problem.startswith("zzzzzz: no such file, and no experiment of that name ships with fedsim")
    assert "quickstart" in problem


@pytest.mark.parametrize("name", ["folder", "folder.toml"])
def test_a_folder_is_no_file(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / name).mkdir()
    assert "is a folder" in refused(capsys, "check", str(tmp_path / name))


def test_a_file_below_a_file_is_told(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.toml").write_text("")
    assert refused(capsys, "check", str(tmp_path / "a.toml" / "b.toml")).startswith(
        f"{tmp_path / 'a.toml' / 'b.toml'}: "
    )


def test_an_unreadable_file_is_told(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "secret.toml"
    file.write_text(document())
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("the user who runs this test (root) may read every file")
    assert "cannot be read" in refused(capsys, "check", str(file))


def test_a_name_longer_than_a_file_system_takes_is_told(capsys: Capture) -> None:
    refused(capsys, "check", "x" * 300)


def test_a_path_longer_than_a_file_system_takes_is_told(capsys: Capture) -> None:
    refused(capsys, "check", "x" * 300 + ".toml")


def test_an_empty_name_is_told(capsys: Capture) -> None:
    refused(capsys, "check", "")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00s\x00e",
        'name = "Zürich"\n'.encode("latin-1"),
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b"\x80",
    ],
    ids=["utf-16", "latin-1", "png", "one byte"],
)
def test_what_is_not_utf_8_is_told(content: bytes, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_bytes(content)
    problem = refused(capsys, "check", str(file))
    assert problem.startswith(f"{file}:")
    assert "UTF-8" in problem


def test_zeros_are_told(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_bytes(bytes(4096))
    problem = refused(capsys, "check", str(file))
    assert problem.startswith(f"{file}:1: not valid TOML")
    assert len(problem) < len(str(file)) + 300
    assert problem.isprintable()


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"], ids=["nothing", "lines", "comment"])
def test_an_empty_file_says_what_it_must_hold(content: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(content)
    answer = ask(capsys, "check", str(file))
    assert answer.code == 2
    for word in ("rounds", "data", "model"):
        assert any(word in problem.split(": ")[1] for problem in answer.problems), answer.err
    assert all(problem.startswith(f"{file}:1: ") for problem in answer.problems), answer.err


def test_a_byte_order_mark_does_no_harm(tmp_path: Path, capsys: Capture) -> None:
    """Editors on Windows write one; nobody sees it."""
    file = tmp_path / "experiment.toml"
    file.write_text(document(), encoding="utf-8-sig")
    answer = ask(capsys, "check", str(file))
    assert (answer.code, answer.err) == (0, "")


def test_lines_end_as_windows_ends_them(tmp_path: Path, capsys: Capture) -> None:
    text = document({("server", "min_clients"): "0"})
    file = tmp_path / "experiment.toml"
    file.write_bytes(text.replace("\n", "\r\n").encode())
    assert refused(capsys, "check", str(file)).startswith(f"{file}:{marked(text)}: server.min_clients: ")


def test_a_syntax_error_in_a_file_of_windows_has_the_right_line(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_bytes(b"rounds = 2\r\nseed = 0\r\nmodel = mlp\r\n")
    assert refused(capsys, "check", str(file)).startswith(f"{file}:3: not valid TOML")


def test_the_last_line_needs_no_end(tmp_path: Path, capsys: Capture) -> None:
    text = document({("server", "min_clients"): "0"}).rstrip("\n")
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    assert refused(capsys, "check", str(file)).startswith(f"{file}:{marked(text)}: server.min_clients: ")


# --- TOML that is none ---------------------------------------------------------------------------------------------

SYNTAX = {
    "no value": "seed = 0\nrounds =  #!\n[data]\n",
    "two values": "seed = 0\nrounds = 1 2  #!\n",
    "two pairs on a line": "seed = 0\nrounds = 1 clients = 2  #!\n",
    "no quotes": '# a model\n\n[model]\nname = mlp  #!\n\n[data]\nname = "digits"\n',
    "python's words": "seed = 0\n[server]\ntls = True  #!\n",
    "nothing of python": "seed = 0\nrounds = None  #!\n",
    "colon": "seed = 0\nrounds: 3  #!\n",
    "no key": "seed = 0\n= 3  #!\n",
    "leading zero": "seed = 0\nrounds = 010  #!\n",
    "decimal comma": "seed = 0\n[clients]\nlearning_rate = 0,1  #!\n",
    "no digit before the point": "seed = 0\n[clients]\nlearning_rate = .1  #!\n",
    "open header": "seed = 0\n[data  #!\n",
    "open double header": 'seed = 0\n[[adversaries]  #!\nname = "geiping"\n',
    "empty header": "seed = 0\n[]  #!\n",
    "open text": 'seed = 0\nname = "abc  #!\nrounds = 3\n',
    "mixed quotes": "seed = 0\nname = \"abc'  #!\nrounds = 3\n",
    "unknown escape": 'seed = 0\nname = "a\\qb"  #!\nrounds = 3\n',
    "windows path": 'seed = 0\n[data]\npath = "C:\\Users"  #!\n',
    "inline table over lines": 'seed = 0\nmodel = { name = "mlp",  #!\n  hidden = [3] }\n',
    "comma at the end of an inline table": 'seed = 0\nmodel = { name = "mlp", }  #!\n',
    "missing comma": "seed = 0\n[model]\nhidden = [3 4]  #!\n",
    "missing comma over lines": "seed = 0\n[model]\nhidden = [\n  3,\n  4\n  5,  #!\n]\n",
    "key twice": "seed = 0\nrounds = 3\n\n[clients]\ncount = 3\nbatch_size = 4\ncount = 4  #!\n",
    "key twice, in a table": 'model = { name = "mlp", name = "lenet" }  #!\n',
    "key twice, behind a text of lines": 'name = """\nrounds\n"""\nrounds = 3\nrounds = 4  #!\n',
    "key twice, the second over lines": "[model]\nhidden = [3]\nhidden = [  #!\n  4,\n  5,\n]\nx = 1\n",
    "section twice": '[data]\nname = "digits"\n[model]\nname = "mlp"\n[data]  #!\npartition = "iid"\n',
    "section and key": 'model = "mlp"\nseed = 0\n[model]  #!\nhidden = [3]\n',
    "table and list of tables": '[adversaries]\nname = "geiping"\n[[adversaries]]  #!\nname = "geiping"\n',
    "list of tables and table": '[[adversaries]]\nname = "geiping"\n[adversaries]  #!\nname = "geiping"\n',
    "into an inline table": 'model = { name = "mlp" }\nseed = 1\nmodel.hidden = [3]  #!\n',
}


@pytest.mark.parametrize("case", SYNTAX)
def test_a_syntax_error_has_its_line_and_shows_it(case: str, tmp_path: Path, capsys: Capture) -> None:
    text = SYNTAX[case]
    line = marked(text)
    text = text.replace(f"  {HERE}", "")
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    problem = refused(capsys, "check", str(file))
    assert problem.startswith(f"{file}:{line}: not valid TOML: "), problem
    assert problem.endswith(f": {text.splitlines()[line - 1].strip()}"), problem


@pytest.mark.parametrize(
    "text",
    [
        "seed = 0\n[model]\nhidden = [3,\n",
        'seed = 0\nname = """abc\n\n',
        "seed = 0\nmodel = {",
        "seed = 0\n[model",
        "seed",
    ],
)
def test_what_ends_too_early_has_a_line_of_the_file(text: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    problem = refused(capsys, "check", str(file))
    line = int(problem.removeprefix(f"{file}:").split(":")[0])
    assert 1 <= line <= len(text.splitlines()), problem
    assert "not valid TOML" in problem


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "{a=" * 5000 + "1" + "}" * 5000], ids=["lists", "tables"])
def test_what_is_nested_too_deep_is_told(value: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(f"seed = {value}\n")
    assert refused(capsys, "check", str(file)).startswith(f"{file}")


@pytest.mark.parametrize("digits", [20, 400, 5000])
@pytest.mark.parametrize("key", ["seed", "learning_rate"])
def test_a_number_of_too_many_digits_is_told(key: str, digits: int, tmp_path: Path, capsys: Capture) -> None:
    section = "" if key == "seed" else "clients"
    text = document({(section, key): "9" * digits})
    if key == "learning_rate" and digits == 20:
        text = text.replace("9" * digits, "1e400")
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    problem = refused(capsys, "check", str(file))
    # Beyond 4300 digits Python itself gives up, and does not say where.
    assert problem.startswith(f"{file}:{marked(text)}: " if digits < 4300 else f"{file}:"), problem
    assert len(problem) < len(str(file)) + 300


# --- exact lines ---------------------------------------------------------------------------------------------------

NAMES = 'rounds = 1\ndata.name = "digits"\nmodel.name = "mlp"\n'
MODEL = '[model]\nname = "mlp"\n'
LINES = {
    "behind comments": (
        "# one\n\n  # three\nseed = 0\nrounds = 0  #!\n[data]\nname = 'digits'\n[model]\nname = 'mlp'\n",
        "rounds",
    ),
    "behind a text with a hash and brackets": (
        'name = "a # b ] } = \\" x"\nrounds = 0  #!\ndata.name = "digits"\nmodel.name = "mlp"\n',
        "rounds",
    ),
    "dotted key": (NAMES + "clients.count = 0  #!\n", "clients.count"),
    "quoted key": (
        NAMES + '[clients]\n"count" = 0  #!\n',
        "clients.count",
    ),
    "dotted header": (
        'rounds = 1\n[data]\nname = "digits"\n[data.partition]\nkind = "dirichlet"\n# x\nalpha = 0  #!\n' + MODEL,
        "data.partition.alpha",
    ),
    "spaced header": (
        'rounds = 1\n[ data ]\nname = "digits"\n[ data . partition ]\nkind = "dirichlet"\nalpha = 0  #!\n' + MODEL,
        "data.partition.alpha",
    ),
    "inline table": (
        'rounds = 1\nmodel = "mlp"\ndata = { partition = { kind = "dirichlet", alpha = 0 }, name = "digits" }  #!\n',
        "data.partition.alpha",
    ),
    "list over lines": (
        'rounds = 1\ndata.name = "digits"\n[model]\nname = "mlp"\nhidden = [\n  8,\n  # nine\n  9,\n  0,  #!\n]\n',
        "model.hidden[2]",
    ),
    "tables in a list over lines": (
        NAMES + '[clients]\ndefenses = [\n  { name = "gradient_pruning" },\n'
        '\n  { name = "gradient_noise", std = -1 },  #!\n]\n',
        "clients.defenses[1].std",
    ),
    "list in a table in a list": (
        NAMES + "[clients]\ncount = 2\ngroups = [\n  { members = [0] },\n"
        "  { members = [\n    1,\n    5,  #!\n  ] },\n]\n",
        "clients.groups[1].members[1]",
    ),
    "second of the groups": (
        NAMES + "[clients]\ncount = 4\n[[clients.groups]]\nmembers = [0]\n"
        "[[clients.groups]]\nmembers = [1]\nbatch_size = 0  #!\n[[clients.groups]]\nmembers = [2]\n",
        "clients.groups[1].batch_size",
    ),
    "defense of the second of the groups": (
        NAMES + "[[clients.groups]]\nmembers = [0]\n[[clients.groups]]\n"
        'members = [1]\n[[clients.groups.defenses]]\nname = "gradient_noise"\n[[clients.groups.defenses]]\n'
        'name = "gradient_noise"\nstd = -1  #!\n',
        "clients.groups[1].defenses[1].std",
    ),
    "section below a group": (
        NAMES + "[[clients.groups]]\nmembers = [0]\n[server]\ntls = 1  #!\n",
        "server.tls",
    ),
    "table below its own part": (
        'rounds = 1\nmodel.name = "mlp"\n[data.partition]\nkind = "iid"\n[data]\nname = "digits"\nparts = 1  #!\n',
        "data.parts",
    ),
    "strategy of its own table": (
        NAMES + '[server.strategy]\nname = "fedadam"\n\nbeta_1 = 1.0  #!\n',
        "server.strategy.beta_1",
    ),
    "second adversary": (
        NAMES + adversary() + "\n" + adversary(id='"b"', targets="[99]").replace('id = "b"  #!', 'id = "b"'),
        "adversaries[1].targets[0]",
    ),
    "table that only a longer header names": (
        NAMES + "[runtime]\nthreads = 1\n[clients.batch_size.x]  #!\ny = 1\n",
        "clients.batch_size",
    ),
    "key of blanks": (
        NAMES + '[clients]\n" " = 0  #!\n',
        "clients.' '",
    ),
    "tabs": (
        NAMES + "\t[clients]\n\t\tcount\t=\t0\t#!\n",
        "clients.count",
    ),
    "dates and times before it": (
        NAMES + "[clients]\nlearning_rate = 1e-1\nmomentum = 0.0\ncount = 0  #!\n",
        "clients.count",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_the_line_is_exact(case: str, tmp_path: Path, capsys: Capture) -> None:
    text, key = LINES[case]
    check_refused(capsys, tmp_path, text, key)


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_the_line_is_exact_behind_a_text_of_lines(quotes: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(
        f"runtime.device = {quotes}\nrounds = 0\n[data]\n{quotes}\n{NAMES}".replace("rounds = 1", "rounds = 0")
    )
    lines = ask(capsys, "check", str(file)).err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{file}:1", f"{file}:5"]
    assert "rounds: must be at least 1" in lines[1]


def test_a_missing_key_of_a_group_has_the_line_of_its_header(tmp_path: Path, capsys: Capture) -> None:
    text = document(tail="[[clients.groups]]\nmembers = [0]\n# a comment\n[[clients.groups]]  #!\nbatch_size = 2")
    check_refused(capsys, tmp_path, text, "clients.groups[1].members", "missing")


def test_a_long_line_is_read_and_not_repeated(tmp_path: Path, capsys: Capture) -> None:
    text = document({("", "name"): '"' + "x" * 100_000 + '"', ("", "rounds"): "0"})
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    answer = ask(capsys, "check", str(file))
    assert answer.code == 2
    assert all(len(problem) < len(str(file)) + 300 for problem in answer.problems)


def test_a_syntax_error_on_a_long_line_does_not_repeat_it(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("x = [" + "1, " * 100_000 + "=]\n")
    assert len(refused(capsys, "check", str(file))) < len(str(file)) + 300


def test_many_entries_take_no_longer_than_they_must(tmp_path: Path, capsys: Capture) -> None:
    members = ",\n".join(map(str, range(20_000)))
    text = document({("clients", "count"): "20000"}, tail=f"[[clients.groups]]\nmembers = [\n{members},\n-1,  #!\n]")
    text = text.replace("count = 20000  #!", "count = 20000")
    start = time.process_time()
    check_refused(capsys, tmp_path, text, "clients.groups[0].members[20000]", "at least 0")
    assert time.process_time() - start < 2


# --- files that an experiment names --------------------------------------------------------------------------------


def data(name: str, path: str) -> str:
    return document({("data", "name"): f'"{name}"'}).replace("#!\n", f"\npath = '{path}'  #!\n")


def test_a_data_set_without_its_file_is_told_by_the_line_of_the_path(tmp_path: Path, capsys: Capture) -> None:
    check_refused(capsys, tmp_path, data("npz", "nowhere.npz"), "data.path", "no file", "nowhere.npz")


def test_a_data_set_without_its_folder_is_told_by_the_line_of_the_path(tmp_path: Path, capsys: Capture) -> None:
    check_refused(capsys, tmp_path, data("imagefolder", "nowhere"), "data.path", "no folder", "nowhere")


@pytest.mark.parametrize("name", ["npz", "imagefolder"])
def test_the_home_of_nobody_is_told(name: str, tmp_path: Path, capsys: Capture) -> None:
    check_refused(capsys, tmp_path, data(name, "~nobody-of-this-name/x"), "data.path")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an .npz file"),
        (b"x" * 1000, "not an .npz file"),
        # What a download that broke off leaves: an end that promises entries which are not there.
        (b"x" * 100 + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 4, 4, 200, 50, 0), "npz"),
        (b"x" * 100 + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 4, 4, 60, 10, 0), "npz"),
    ],
    ids=["empty", "text", "broken off", "overwritten"],
)
def test_what_is_no_npz_is_told(content: bytes, words: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(content)
    experiment = tmp_path / "experiment.toml"
    text = data("npz", str(file))
    experiment.write_text(text)
    problem = refused(capsys, "check", str(experiment))
    assert problem.startswith(f"{experiment}:{marked(text)}: data.path: ")
    assert words in problem


def test_an_npz_without_the_arrays_names_those_that_are_missing(tmp_path: Path, capsys: Capture) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x_train.npy", b"")
        archive.writestr("other.npy", b"")
    (tmp_path / "experiment.toml").write_text(data("npz", str(tmp_path / "data.npz")))
    problem = refused(capsys, "check", str(tmp_path / "experiment.toml"))
    for word in ("y_train", "x_test", "y_test", "other"):
        assert word in problem


@pytest.mark.parametrize(
    ("name", "kind"), [("npz", "folder"), ("imagefolder", "file"), ("imagefolder", "empty folder")]
)
def test_a_path_of_the_wrong_kind_is_told(name: str, kind: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty folder").mkdir()
    text = data(name, str(tmp_path / kind))
    (tmp_path / "experiment.toml").write_text(text)
    problem = refused(capsys, "check", str(tmp_path / "experiment.toml"))
    assert problem.startswith(f"{tmp_path / 'experiment.toml'}:{marked(text)}: data.path: ")
    assert kind.split()[-1] in problem


@pytest.mark.parametrize("keys", ["mean = [0.5]", "std = [0.5]", "mean = [0.5]\nstd = [0.5, 0.5]"])
def test_a_normalisation_that_is_half_is_told(keys: str, tmp_path: Path, capsys: Capture) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"")
    text = data("npz", str(tmp_path / "data.npz")).replace("  #!", f"\n{keys}")
    (tmp_path / "experiment.toml").write_text(text)
    problem = refused(capsys, "check", str(tmp_path / "experiment.toml"))
    assert "mean" in problem
    assert "std" in problem


# --- where a run goes ----------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    # A run that should have been refused must not start: it would only fail later, and slowly.
    monkeypatch.setattr("fedsim.commands.run._run", lambda *_: pytest.fail("the run was started"))
    (tmp_path / "good.toml").write_text(document())
    return "good.toml"


def test_a_run_folder_that_is_not_empty_is_left_alone(good: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "rounds.jsonl").write_text("precious")
    problem = refused(capsys, "run", good, "--out", "taken")
    assert problem.startswith("--out taken: ")
    assert "not empty" in problem
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["rounds.jsonl"]
    assert (tmp_path / "taken" / "rounds.jsonl").read_text() == "precious"


def test_a_file_is_no_run_folder(good: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("precious")
    assert "is a file" in refused(capsys, "run", good, "--out", "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_there_is_no_run_folder_below_a_file(good: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("precious")
    assert refused(capsys, "run", good, "--out", "file/below").startswith("--out file/below: ")


def test_a_link_that_leads_nowhere_is_no_run_folder(good: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert refused(capsys, "run", good, "--out", "link").startswith("--out link: ")


def test_a_run_folder_of_no_name_is_refused(good: str, capsys: Capture) -> None:
    """`--out "$DIR"` with DIR unset must not put the run somewhere else."""
    assert refused(capsys, "run", good, "--out", "").startswith("--out")


def test_a_name_too_long_for_a_folder_is_refused(good: str, capsys: Capture) -> None:
    assert refused(capsys, "run", good, "--out", "x" * 300).startswith("--out ")


def test_bad_input_is_said_before_the_folder_is_made(good: str, tmp_path: Path, capsys: Capture) -> None:
    refused(capsys, "run", good, "--out", "new", "--set", "rounds=0")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "runs").exists()
