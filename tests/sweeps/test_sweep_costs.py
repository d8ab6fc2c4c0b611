"""The cost model of an end-to-end recovery, and `[costs]`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asking import ask

from fedsim.errors import InputError
from fedsim.sweeps import costs, estimate
from fedsim.sweeps.cells import expand
from fedsim.sweeps.file import parse
from fedsim.sweeps.words import Costs

Capture = pytest.CaptureFixture[str]
TEXT = '[sweep]\nshow = ["costs"]\n[costs]\nimages = 640\nepochs = 2\nbatch = 64\nhours = 0.5\n'
SMALL = 'data = "digits"\nmodel = { name = "mlp", hidden = [8] }\ndevice = "cpu"\niterations = 7200\n'


def problems(text: str, *settings: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        costs.trial(expand(parse(text, "s.toml", "s"), None, settings).sweep)
    return list(caught.value.problems)


def test_the_published_setting_gives_the_published_hours() -> None:
    assert costs.hours(Costs(), encoded=False) == 0.25
    assert costs.inversions(Costs(), encoded=True) == 3906.25
    assert costs.hours(Costs(), encoded=True) == 976.5625


def test_the_model_grows_as_its_formula_says() -> None:
    one = Costs(images=640, epochs=2, batch=64, hours=0.5)
    assert costs.hours(one, encoded=True) == 20 * 0.5
    assert costs.hours(Costs(images=640, epochs=4, batch=64, hours=0.5), encoded=True) == 40 * 0.5
    assert costs.hours(Costs(images=640, epochs=2, batch=32, hours=0.5), encoded=True) == 40 * 0.5
    decoded = Costs(images=640, epochs=2, batch=64, hours=0.5, decoding_hours=3)
    assert costs.hours(decoded, encoded=True) == 13
    assert costs.hours(decoded, encoded=False) == 0.5


def test_rows_have_one_time_in_four_units() -> None:
    rows = {row["defense"]: row for row in costs.rows(Costs())}
    assert rows["No defense"]["hours"] == rows["GradPrune"]["hours"] == 0.25
    mixed = rows["MixUp"]
    assert mixed["days"] == pytest.approx(40.690104)
    assert mixed["years"] == pytest.approx(40.690104 / 365.25)
    assert mixed["years of 356 days"] == pytest.approx(40.690104 / 356)
    assert rows["Intra-InstaHide"] | {"defense": "MixUp"} == mixed


def test_the_notes_say_what_is_not_counted() -> None:
    assert any("not counted" in note for note in costs.notes(Costs()))
    assert not any("not counted" in note for note in costs.notes(Costs(decoding_hours=1)))


def test_t_is_measured_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "step_seconds", lambda experiment, images: 0.01 * images)
    sweep = expand(parse(f"{TEXT}measure = true\n{SMALL}", "s.toml", "s")).sweep
    assert sweep.costs is not None
    rows, notes = costs.lines(sweep.costs, costs.trial(sweep))
    # 0.64 s a pass, 5 passes a step, 7200 steps
    assert rows[0]["hours"] == pytest.approx(0.64 * estimate.ATTACK_STEP * 2)
    assert rows[2]["hours"] == pytest.approx(20 * rows[0]["hours"])
    assert "measured here, of mlp with 64 images on cpu" in notes[0]


def test_a_step_is_really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "TRIAL", 0.05)
    trial = costs.trial(expand(parse(f"{TEXT}measure = true\n{SMALL}", "s.toml", "s")).sweep)
    assert trial is not None
    assert 0 < estimate.step_seconds(trial, 64) < 1


def test_nothing_is_tried_unless_asked_for() -> None:
    assert costs.trial(expand(parse(TEXT + 'model = "nothing"\n', "s.toml", "s")).sweep) is None


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("imags = 3", "s.toml:8: costs.imags: unknown key; did you mean 'images'?"),
        ("decoding_hours = -1", "s.toml:8: costs.decoding_hours: must be at least 0"),
        ('measure = true\nmodel = "mpl"', "s.toml:9: model"),
        ('measure = true\nmodel = "mlp"\ndata = { name = "npz" }', "s.toml:10: data.path: missing"),
    ],
)
def test_a_mistake_is_told_with_its_line(line: str, answer: str) -> None:
    assert any(one.startswith(answer) for one in problems(f"{TEXT}{line}\n")), problems(f"{TEXT}{line}\n")


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("costs.hours=0", "--set costs.hours=0: costs.hours: must be above 0"),
        ("costs.hour=1", "--set costs.hour=1: costs.hour: unknown key"),
        ("costs=1", "--set costs=1: name a key of it, as in --set costs.hours=0.5"),
        ("labels.draws=1", "--set labels.draws=1: this sweep shows no labels"),
        ("seed=1", "--set seed=1: this sweep has no experiments to change"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(setting: str, answer: str) -> None:
    found = problems(TEXT, setting)
    assert found[0].startswith(answer), found


def test_the_command_line_changes_it_and_the_folder_remembers(tmp_path: Path, capsys: Capture) -> None:
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text(TEXT)
    answer = ask(capsys, "sweep", str(path), "--set", "costs.hours=2", "--out", str(out))
    assert answer.code == 0
    assert "What an end-to-end recovery costs" in answer.out
    assert "0 cells" not in answer.out
    results = json.loads((out / "results.json").read_text())
    assert [row["hours"] for row in results["costs"]] == [2.0, 2.0, 40.0, 40.0]
    assert "| MixUp | 20 |" in (out / "table.md").read_text()
    assert "n T / b" in (out / "report.html").read_text()
    again = parse((out / "sweep.toml").read_text(), "sweep.toml", "sweep")
    assert expand(again).sweep.costs == Costs(images=640, epochs=2, batch=64, hours=2)
    assert ask(capsys, "report", str(out)).code == 0
    assert json.loads((out / "results.json").read_text()) == results


def test_a_section_that_nothing_shows_is_a_mistake() -> None:
    text = TEXT.replace('"costs"', '"assumptions"')
    assert problems(text) == ["s.toml:3: costs: the page does not show it; add 'costs' to sweep.show, or leave it out"]
