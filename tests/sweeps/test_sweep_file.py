"""Sweep files: what is read, and what a mistake is answered with."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from asking import ask
from made import TEXT

from fedsim.adversaries import threat
from fedsim.errors import InputError
from fedsim.experiment_file import shipped as shipped_experiments
from fedsim.sweeps import file
from fedsim.sweeps.cells import expand
from fedsim.sweeps.file import parse

Capture = pytest.CaptureFixture[str]


def problems(text: str) -> list[str]:
    """What reading and expanding a text is answered with."""
    with pytest.raises(InputError) as caught:
        expand(parse(text, "s.toml", "s"), rules=[threat.check])
    return list(caught.value.problems)


def line(text: str, part: str) -> int:
    """Of the first line that holds this."""
    return text[: text.index(part)].count("\n") + 1


def test_a_file_is_read_whole() -> None:
    sweep = parse(TEXT, "s.toml", "s")
    assert (sweep.name, sweep.title) == ("s", "A sweep of two defenses and two batch sizes")
    assert list(sweep.scales) == ["tiny", "large"]
    assert sweep.default_scale == "tiny"
    assert [axis.names for axis in sweep.axes] == [("none", "p90"), ("1", "4")]
    assert sweep.training is not None
    assert sweep.training.attack_round == 1
    assert sweep.table is not None
    assert [one.name for one in sweep.table.protocols] == ["plain"]
    assert sweep.published["psnr"]["mean"]["1"]["none"] == 10.0


def test_a_title_may_be_given() -> None:
    assert parse(TEXT.replace("[sweep]", '[sweep]\ntitle = "Mine"'), "s.toml", "s").title == "Mine"


# (what is replaced, by what, the line that is named: a part of it, what is said)
MISTAKES = [
    ("[values]", "[valuez]", "[valuez]", "valuez: unknown section; did you mean 'values'?"),
    ("[sweep]", "[sweep]\nshows = []", "shows", "sweep.shows: unknown key; did you mean 'show'?"),
    ('"plane"]', '"plan"]', "show =", "sweep.show[1]: must be one of"),
    ('"tiny", "large"]', '"tiny", "huge", "large"]', "scales =", "there is no [scales.huge]"),
    ('"tiny", "large"]', '"tiny"]', "[scales.large]", "scales.large: is not among sweep.scales; add it"),
    ('"tiny", "large"]', '"tiny", "large", "tiny"]', "scales =", "'tiny' is there twice"),
    ("[training]\n", "[training]\nsets = {}\n", "sets", "training.sets: unknown key; did you mean 'set'?"),
    ("attack_round = 1\n", "", "[training]", "training.attack_round: missing"),
    ('name = "p90"', 'name = "none"', 'name = "none"\nadv', "axes[0].points[1].name: 2 points of 'defense' are called"),
    ('name = "batch"', 'name = "defense"', 'name = "defense"\n\n[[axes.points]]\nname = "1"', "2 axes are called"),
    (
        'label = "None"\nadversaries = ["inversion"]',
        'adversaries = ["inverter"]',
        '["inverter"]',
        "no template 'inverter'",
    ),
    ("both = {", "bothe = {", "bothe", "unknown key; did you mean 'both'?"),
    ("[scales.tiny]", '[scales.tiny]\naxes = { bach = ["1"] }', "bach", "no axis 'bach'; did you mean 'batch'?"),
    ("[scales.tiny]", '[scales.tiny]\naxes = { batch = ["2"] }', "axes =", "no point of 'batch' '2'"),
    ("[scales.tiny]", "[scales.tiny]\nvalues = { most = 2 }", "most", "no name in [values] 'most'"),
    ('rows = "batch"', 'rows = "bach"', "rows =", "table.rows: there is no axis 'bach'"),
    ('rows = "batch"', 'rows = "defense"', "rows =", "is across already"),
    ('columns = "defense"\n', "", "[table]", "table.columns: missing"),
    ('baseline = "none"', 'baseline = "nobody"', "baseline =", "there is no point of 'defense' 'nobody'"),
    ('baseline = "none"\n', "", "[table]", "table.baseline: missing; say which column time_ratio is relative to"),
    ('values = ["psnr"', 'values = ["pnsr"', "values =", "did you mean 'psnr'?"),
    ('name = "plain"\nadversaries = ["inversion"]', 'name = "plain"\nadversaries = ["x"]', '["x"]', "no adversary 'x'"),
    ("p90 = 8", "p9 = 8", "p9 = 8", "there is no point of 'defense' 'p9'; did you mean 'p90'?"),
    ("p90 = 8", 'p90 = "8"', "p90 = ", "must be a number"),
    ('"1" = { none', '"2" = { none', '"2" = {', "there is no point of 'batch' '2'"),
    ("[experiment]\n", "[experiment]\ncheckpoint = 'x'\n", "checkpoint", "leave one of them out"),
    ("[sweep]\n", '[sweep]\nscale = "hug"\n', 'scale = "hug"', "there is no scale 'hug'"),
    ("[sweep]\n", '[sweep]\nsettings = ["x"]\n', "settings =", "sweep.settings[0]: x: not of the form key=value"),
    ("[table]", '[chart]\nx = "defense"\ny = "lpips"\n[table]', "x =", "must have numbers for names; 'none' is none"),
    # in the experiments of the cells
    ("seed = 3", "sead = 3", "sead", "sead: unknown key; did you mean 'seed'?"),
    ("ratio = 0.9", "ratio = 2", "both =", "clients.defenses[0].ratio: must be below 1"),
    ('"clients.batch_size" = 4', '"clients.batch_sise" = 4', "batch_sise", "clients.batch_sise: unknown key; did you"),
    ('"clients.batch_size" = 4', '"adversaries.3.tv" = 4', "adversaries.3", "there is no entry '3'; the list has 1"),
    ('"clients.batch_size" = 4', '"seed.x" = 4', "seed.x", "'seed' is not a table or a list"),
    ("{ iterations = 2 }", "{ iteration = 2 }", "iteration = 2", "did you mean 'iterations'?"),
    ("iterations = 100", "iterations = 100\ntvv = 1", "tvv", "adversaries[0].tvv: unknown key; did you mean 'tv'?"),
    ('knows = ["labels"]', "knows = []\nlabels = 'known'", "[templates.inversion]", "needs 'labels'"),
    ("attack_round = 1", "attack_round = 3", "attack_round", "there is no round 3; the experiment has rounds = 2"),
    ("rounds = 2,", "rounds = 0,", "rounds = 0", "rounds: must be at least 1, not 0 (training of cell none-1"),
    ('"$least"', '"$leas"', '"$leas"', "there is no value '$leas'; did you mean 'least'?"),
    ('set = { "clients.batch_size" = 4', "times = { bach = 4", "bach = 4", "bach: there is no number to multiply"),
    ('both = { "', 'both = { clients = { bach = 1 }, "', "bach", "clients.bach: unknown key"),
]


@pytest.mark.parametrize(("part", "by", "where", "what"), MISTAKES, ids=[by[:40] for _, by, _, _ in MISTAKES])
def test_a_mistake_is_told_with_line_and_remedy(part: str, by: str, where: str, what: str) -> None:
    assert part in TEXT
    text = TEXT.replace(part, by, 1)
    found = problems(text)
    if "twice" in what or "are called" in what:
        assert any(what in one for one in found)
        return
    assert any(one.startswith(f"s.toml:{line(text, where)}: ") and what in one for one in found), found


def test_a_mistake_that_all_cells_share_is_told_once() -> None:
    found = problems(TEXT.replace("seed = 3", "seed = -3"))
    assert found == ["s.toml:10: seed: must be at least 0, not -3 (training of cell none-1 and 7 others)"]


def test_mistakes_in_different_cells_are_told_at_once() -> None:
    found = problems(TEXT.replace("ratio = 0.9", "ratio = 2").replace('batch_size" = 4', 'batch_size" = 0'))
    assert any("ratio" in one and "(training of cell p90-1 and 3 others)" in one for one in found)
    assert any("batch_size: must be at least 1" in one and "(cell none-4 and 1 other)" in one for one in found)


def test_a_protocol_may_name_one_of_several_answers() -> None:
    text = TEXT.replace('name = "plain"\nadversaries = ["inversion"]', 'name = "plain"\nadversaries = ["inversion-x"]')
    assert "there is no adversary 'inversion-x'" in problems(text)[0]
    decoding = '[templates.decoding]\nname = "carlini"\n\n[[axes]]'
    parse(text.replace("inversion-x", "decoding-x").replace("[[axes]]", decoding, 1), "s.toml", "s")


def test_parts_without_cells_need_no_experiment() -> None:
    sweep = parse('[sweep]\nshow = ["costs", "assumptions"]\n', "s.toml", "s")
    assert expand(sweep).cells == ()
    with pytest.raises(InputError, match=r"experiment: missing; the part 'plane'"):
        parse('[sweep]\nshow = ["plane"]\n', "s.toml", "s")


# --- files and names ------------------------------------------------------------------------------------------------


def test_a_sweep_is_no_experiment_and_the_other_way_round(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    answer = ask(capsys, "run", str(path))
    assert answer.code == 2
    assert answer.err == f"{path}: is a sweep, not an experiment; use `fedsim sweep {path}`\n"
    answer = ask(capsys, "sweep", "quickstart")
    assert answer.code == 2
    assert answer.err.endswith("use `fedsim run quickstart`\n")


def test_what_is_not_there_is_said(tmp_path: Path, capsys: Capture) -> None:
    assert "no sweep of that name" in ask(capsys, "sweep", "gradattack/nothing").err
    assert "no such file" in ask(capsys, "sweep", str(tmp_path / "x.toml")).err
    (tmp_path / "bad.toml").write_text("[sweep\n")
    assert ask(capsys, "sweep", str(tmp_path / "bad.toml")).err.startswith(f"{tmp_path / 'bad.toml'}:1: not valid TOML")


def test_sweeps_are_no_experiments_of_the_list() -> None:
    assert not set(file.shipped()) & set(shipped_experiments())
    assert all(file.is_sweep(name) for name in file.shipped())
    assert not file.is_sweep("quickstart")
    assert not file.is_sweep("../experiments/quickstart")


@pytest.mark.parametrize("name", file.shipped())
def test_every_shipped_sweep_is_listed_with_a_title(name: str) -> None:
    assert file.read(name).title != name


def test_check_validates_all_scales(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    answer = ask(capsys, "check", str(path))
    assert answer.code == 0
    assert "scale tiny: 4 cells (2 defense x 2 batch), 2 trainings" in answer.out
    assert "scale large: 4 cells" in answer.out
    path.write_text(TEXT.replace("rounds = 9", "rounds = 0"))
    answer = ask(capsys, "check", str(path))
    assert answer.code == 2
    assert "rounds: must be at least 1" in answer.err


def test_a_resolved_file_is_read_back_to_the_same_grid() -> None:
    from fedsim.sweeps.cells import settings_of

    grid = expand(parse(TEXT, "s.toml", "group/s"), "large", ["clients.batch_size=2"])
    written = tomli_w.dumps(settings_of(grid))
    assert tomllib.loads(written)["sweep"]["scale"] == "large"
    again = expand(parse(written, "again.toml", "again"))
    assert [cell.hash for cell in again.cells] == [cell.hash for cell in grid.cells]
    assert again.sweep.name == "group/s"
