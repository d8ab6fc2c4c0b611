"""`extends`: a sweep made from another one; and that every sweep that ships can be run at all its scales."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from made import TEXT

from fedsim.adversaries import threat
from fedsim.errors import InputError
from fedsim.sweeps import file
from fedsim.sweeps.cells import expand, settings_of
from fedsim.sweeps.words import Sweep

OWN = '# Mine\n[sweep]\nextends = "base"\nshow = ["table"]\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(TEXT)
    return tmp_path


def read(folder: Path, text: str) -> Sweep:
    (folder / "own.toml").write_text(text)
    return file.read(str(folder / "own.toml"))


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        expand(read(folder, text), rules=[threat.check])
    return [one.replace(f"{folder}/", "") for one in caught.value.problems]


def line(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_what_is_not_said_is_taken_over(folder: Path) -> None:
    sweep, base = read(folder, OWN), file.read(str(folder / "base.toml"))
    assert (sweep.name, sweep.title, sweep.show) == ("own", "Mine", ("table",))
    assert base.published
    assert not sweep.published  # printed values are of their own table
    grid, other = expand(sweep), expand(base)
    assert [cell.hash for cell in grid.cells] == [cell.hash for cell in other.cells]
    assert list(sweep.scales) == ["tiny", "large"]


def test_tables_are_merged_and_lists_replaced(folder: Path) -> None:
    sweep = read(
        folder,
        f"{OWN}[experiment]\nseed = 8\n[experiment.clients]\ncount = 3\n"
        '[[axes]]\nname = "defense"\n[[axes.points]]\nname = "none"\nadversaries = ["inversion"]\n'
        '[[axes]]\nname = "batch"\n[[axes.points]]\nname = "1"\n[scales.tiny]\ntemplates = { tv = 0.5 }\n',
    )
    grid = expand(sweep)
    (cell,) = grid.cells
    assert (cell.experiment.seed, cell.experiment.clients.count) == (8, 3)
    assert cell.experiment.clients.algorithm == "fedsgd"  # the other's
    settings = cell.experiment.adversaries[0].plugin.settings
    assert (settings.tv, settings.iterations) == (0.5, 2)


def test_a_part_that_is_not_shown_any_more_is_no_mistake(folder: Path) -> None:
    shown = TEXT.replace('"plane"]', '"labels"]').replace("[table]", "[labels]\ndraws = 3\n[table]", 1)
    (folder / "base.toml").write_text(shown)
    assert read(folder, OWN).labels is None
    assert read(folder, OWN.replace('"table"]', '"labels"]')).labels.draws == 3


def test_a_component_is_replaced_whole(folder: Path) -> None:
    text = f'{OWN}[experiment]\nmodel = {{ name = "convnet6" }}\n'  # an mlp's `hidden` is none of its
    model = expand(read(folder, text)).cells[0].experiment.model
    assert (model.name, model.settings.hidden) == ("convnet6", 1024)


@pytest.mark.parametrize(
    ("own", "where", "what"),
    [
        # in the own file
        ("[experiment]\nsead = 3\n", ("own", "sead"), "sead: unknown key"),
        ('[experiment]\nmodel = { name = "mpl" }\n', ("own", "model"), "model"),
        ("[table]\nrow = 1\n", ("own", "row ="), "table.row: unknown key; did you mean 'rows'?"),
        ("[templates.inversion]\nitter = 1\n", ("own", "itter"), "adversaries[0].itter: unknown key"),
        ("[sweep.x]\n", ("own", "[sweep.x]"), "sweep.x: unknown key"),
        # in the other one, where the own file makes it a mistake
        ('[experiment]\nmodel = "mlp"\n[values]\nleast = 0\n', ("base", '"$least"'), "batch_size: must be at least 1"),
        ("[training]\nset = { rounds = 0 }\n", ("own", "rounds = 0"), "rounds: must be at least 1"),
        ('[[axes]]\nname = "x"\n[[axes.points]]\nname = "1"\n', ("base", 'rows = "batch"'), "there is no axis 'batch'"),
    ],
)
def test_a_mistake_names_the_file_it_stands_in(folder: Path, own: str, where: tuple[str, str], what: str) -> None:
    text = OWN + own
    found = problems(folder, text)
    name, part = where
    place = f"{name}.toml:{line(text if name == 'own' else TEXT, part)}: "
    assert any(one.startswith(place) and what in one for one in found), found


def test_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[sweep]\nextends = "b"\n')
    (tmp_path / "b.toml").write_text('[sweep]\n\nextends = "own.toml"\n')
    assert problems(tmp_path, '[sweep]\nextends = "a"\n') == [
        "b.toml:3: sweep.extends: goes round in a circle: own.toml -> a.toml -> b.toml -> own.toml; "
        "leave one of them out"
    ]


def test_what_is_extended_must_be_a_sweep(folder: Path) -> None:
    (folder / "x.toml").write_text("rounds = 1\n")
    assert problems(folder, OWN.replace("base", "x")) == [
        "own.toml:3: sweep.extends: 'x' is no sweep (there is no [sweep] in it)"
    ]
    assert (
        "there is no sweep 'gradattack/table22'; did you mean 'gradattack/table2'?"
        in (problems(folder, OWN.replace("base", "gradattack/table22"))[0])
    )
    assert "must be the name of a sweep" in problems(folder, OWN.replace('"base"', "3"))[0]
    (folder / "bad.toml").write_text("[sweep\n")
    assert problems(folder, OWN.replace("base", "bad"))[0].startswith("bad.toml:1: not valid TOML")


def test_one_that_ships_can_be_extended_and_again(folder: Path) -> None:
    middle = '[sweep]\nextends = "gradattack/table2"\n[values]\nimages = 7\n'
    (folder / "middle.toml").write_text(middle)
    sweep = read(folder, OWN.replace("base", "middle"))
    assert sweep.values["images"] == 7
    assert sweep.values["batchnorm"] == file.read("gradattack/table2").values["batchnorm"]


def test_the_resolved_file_stands_alone(folder: Path) -> None:
    grid = expand(read(folder, OWN))
    written = tomli_w.dumps(settings_of(grid))
    assert "extends" not in tomllib.loads(written)["sweep"]
    again = expand(file.parse(written, "sweep.toml", "sweep"))
    assert [cell.hash for cell in again.cells] == [cell.hash for cell in grid.cells]


# --- what ships -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", file.shipped())
def test_every_shipped_sweep_is_valid_at_every_scale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_data(*_: object) -> None:
        raise AssertionError("validation loads no data")

    monkeypatch.setattr("fedsim.data.federation.load_data", no_data)
    (tmp_path / "some class").mkdir()
    sweep = file.read(name)
    settings = [f"values.folder={tmp_path}"] if "folder" in sweep.values else []
    of_a_paper = name.startswith("gradattack/")
    assert list(sweep.scales) == ["tiny", "small", *(["paper"] if of_a_paper else [])]
    grids = {scale: expand(sweep, scale, settings, [threat.check]) for scale in sweep.scales}
    if sweep.experiment is not None:
        assert all(grid.cells for grid in grids.values())
        assert not grids["tiny"].confirm
        assert "paper" not in grids or grids["paper"].confirm


def test_what_no_data_ships_for_says_what_to_give() -> None:
    with pytest.raises(InputError) as caught:
        expand(file.read("gradattack/figure5"))
    (problem,) = caught.value.problems
    assert problem.startswith("gradattack/figure5.toml:")
    assert "data.path: there is no folder images" in problem


def test_scales_that_are_named_are_all_there_are(folder: Path) -> None:
    own = OWN + 'scales = ["mine"]\n[scales.mine.templates]\niterations = 7\n'
    sweep = read(folder, own)
    assert list(sweep.scales) == ["mine"]
    assert {cell.experiment.adversaries[0].plugin.settings.iterations for cell in expand(sweep).cells} == {7}
