"""The grid: what changes what, in which order, and what a cell's hash is made of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made import TEXT

from fedsim.errors import InputError
from fedsim.sweeps.cells import Cell, Grid, expand, fingerprint, narrow
from fedsim.sweeps.file import parse


def grid(text: str = TEXT, scale: str | None = None, *settings: str) -> Grid:
    return expand(parse(text, "s.toml", "s"), scale, settings)


def cell(of: Grid, *names: str) -> Cell:
    return next(one for one in of.cells if tuple(one.at.values()) == names)


def test_cells_are_all_combinations_in_the_order_of_the_axes() -> None:
    assert [one.label for one in grid().cells] == ["none-1", "none-4", "p90-1", "p90-4"]
    assert grid().cells[1].at == {"defense": "none", "batch": "4"}


def test_a_scale_may_use_some_points() -> None:
    text = TEXT.replace("[scales.tiny]", '[scales.tiny]\naxes = { batch = ["4"] }')
    found = grid(text)
    assert [one.label for one in found.cells] == ["none-4", "p90-4"]
    assert [axis.names for axis in found.axes] == [("none", "p90"), ("4",)]
    assert len(grid(text, "large").cells) == 4


def test_a_scale_without_the_baseline_measures_no_times() -> None:
    text = TEXT.replace("[scales.tiny]", '[scales.tiny]\naxes = { defense = ["p90"] }')
    assert {one.baseline for one in grid(text).cells} == {None}


def test_templates_become_adversaries_with_the_scales_settings() -> None:
    entry = cell(grid(), "none", "1").experiment.adversaries[0]
    assert (entry.id, entry.plugin.name, entry.plugin.settings.iterations) == ("inversion", "geiping", 2)
    assert cell(grid(TEXT, "large"), "none", "1").experiment.adversaries[0].plugin.settings.iterations == 100


def test_values_stand_for_names() -> None:
    assert cell(grid(), "none", "1").experiment.clients.batch_size == 1
    assert cell(grid(TEXT, None, "values.least=2"), "none", "1").experiment.clients.batch_size == 2
    text = TEXT.replace("[scales.tiny]", "[scales.tiny]\nvalues = { least = 3 }")
    assert cell(grid(text), "none", "1").experiment.clients.batch_size == 3
    assert cell(grid(text, "large"), "none", "1").experiment.clients.batch_size == 1
    with pytest.raises(InputError, match=r"--set values.lest=1: \[values\] has no 'lest'; did you mean 'least'"):
        grid(text, None, "values.lest=1")


def test_the_order_in_which_a_cell_is_made() -> None:
    """[experiment], scale.set, points' both, adversaries, set, --set: each overrides what is before it."""

    def rate(text: str, *settings: str) -> float:
        return cell(grid(text, None, *settings), "none", "1").experiment.server.learning_rate

    key = '"server.learning_rate"'
    text = TEXT
    assert rate(text) == 0.1
    text = text.replace("[scales.tiny]", f"[scales.tiny]\nset = {{ {key} = 0.2 }}")
    assert rate(text) == 0.2
    text = text.replace('name = "1"\n', f'name = "1"\nboth = {{ {key} = 0.3 }}\n')
    assert rate(text) == 0.3
    # of an earlier axis, and still after every `both`
    text = text.replace('label = "None"\n', f'label = "None"\nset = {{ {key} = 0.4 }}\n')
    assert rate(text) == 0.4
    assert rate(text, "server.learning_rate=0.5") == 0.5


def test_times_multiplies_what_every_set_has_made() -> None:
    text = TEXT.replace('label = "None"\n', 'times = { "clients.batch_size" = "$least", seed = 2 }\n')
    text = text.replace("least = 1", "least = 3")
    first = cell(grid(text), "none", "4").experiment
    assert (first.clients.batch_size, first.seed) == (12, 6)
    assert cell(grid(text), "p90", "4").experiment.clients.batch_size == 4
    assert cell(grid(text, None, "seed=5"), "none", "4").experiment.seed == 5
    training = cell(grid(text), "none", "4").training
    assert training is not None
    assert training.experiment.seed == 3


def test_set_reaches_into_templates_of_a_later_axis() -> None:
    text = TEXT.replace('label = "None"\nadversaries = ["inversion"]\n', 'set = { "adversaries.0.tv" = 0.5 }\n')
    text = text.replace('adversaries = ["inversion"]\nboth', "both").replace(
        'name = "4"\n', 'name = "4"\nadversaries = ["inversion"]\n'
    )
    text = text.replace('name = "1"\n', 'name = "1"\nadversaries = ["inversion"]\n')
    found = grid(text)
    assert cell(found, "none", "4").experiment.adversaries[0].plugin.settings.tv == 0.5
    assert cell(found, "p90", "4").experiment.adversaries[0].plugin.settings.tv != 0.5


def test_tables_that_name_nothing_are_merged() -> None:
    text = TEXT.replace('set = { "clients.batch_size" = 4 }', "set = { clients = { batch_size = 4 } }")
    clients = cell(grid(text), "none", "4").experiment.clients
    assert (clients.batch_size, clients.count) == (4, 2)
    text = TEXT.replace('set = { "clients.batch_size" = 4 }', 'set = { model = { name = "lenet" } }')
    assert cell(grid(text), "none", "4").experiment.model.name == "lenet"


def test_the_training_is_the_experiment_without_adversaries() -> None:
    found = grid()
    training = cell(found, "p90", "1").training
    assert training is not None
    experiment = training.experiment
    assert (experiment.rounds, experiment.server.evaluate_every, experiment.save_rounds) == (2, 1, (1,))
    assert experiment.adversaries == ()
    assert experiment.clients.defenses[0].name == "gradient_pruning"
    assert experiment.clients.batch_size == 32  # the axis sets the cells' alone
    assert cell(found, "p90", "1").experiment.rounds == 1


def test_the_order_in_which_a_training_is_made() -> None:
    def rounds(text: str, *settings: str) -> int:
        training = cell(grid(text, None, *settings), "none", "1").training
        assert training is not None
        return training.experiment.rounds

    text = TEXT.replace("[scales.tiny]", "[scales.tiny]\nset = { rounds = 3 }")
    assert rounds(text) == 2
    text = text.replace("[scales.tiny]", "[scales.tiny]\ntraining = { rounds = 4 }")
    assert rounds(text) == 4
    text = text.replace('label = "None"\n', 'label = "None"\ntraining = { rounds = 6 }\nboth = { rounds = 5 }\n')
    assert rounds(text) == 6
    assert rounds(text, "training.rounds=7") == 7
    assert rounds(text, "rounds=8") == 6


def test_cells_share_their_trainings() -> None:
    found = grid()
    assert len(found.trainings) == 2
    assert cell(found, "none", "1").training is cell(found, "none", "4").training
    assert cell(found, "p90", "1").baseline == cell(found, "none", "1").training
    # An axis that changes both needs a training of its own for each point.
    assert len(grid(TEXT.replace('set = { "clients', 'both = { "clients')).trainings) == 4


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ("name=other", True),
        ("runtime.threads=3", True),
        ("seed=4", False),
        ("adversaries.0.tv=0.3", False),
        ("scores.lpips=squeeze", False),
        ("training.runtime.threads=2", True),
        ("training.seed=4", False),
        ("runtime.device=auto", False),
    ],
)
def test_a_hash_is_of_what_determines_the_outcome(setting: str, same: bool) -> None:
    before, after = grid().cells, grid(TEXT, None, setting).cells
    assert [a.hash == b.hash for a, b in zip(before, after, strict=True)] == [same] * 4


def test_hashes_tell_cells_apart_and_stay() -> None:
    hashes = [one.hash for one in grid().cells]
    assert len(set(hashes)) == 4
    assert hashes == [one.hash for one in grid(TEXT.replace("[table]", "[table] # a comment")).cells]
    experiment = grid().cells[0].experiment
    assert fingerprint(replace(experiment, checkpoint="a"), "t") == fingerprint(
        replace(experiment, checkpoint="b"), "t"
    )
    assert fingerprint(replace(experiment, checkpoint="a")) != fingerprint(replace(experiment, checkpoint="b"))


def test_a_checkpoint_counts_by_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    made = [replace(grid().cells[0].experiment, checkpoint=str(path)) for path in (first, second)]
    assert fingerprint(made[0]) == fingerprint(made[1])
    second.write_bytes(b"others")
    assert fingerprint(made[0]) != fingerprint(made[1])


def test_without_axes_there_is_one_cell() -> None:
    text = '[sweep]\nshow = []\n[experiment]\nrounds = 1\ndata = "digits"\nmodel = "mlp"\n'
    assert [(one.label, one.folder[:11]) for one in grid(text).cells] == [("cell", "cells/cell-")]


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("training=1", "name a key of it"),
        ("clients.batch_sise=1", "--set clients.batch_sise=1: clients.batch_sise: unknown key; did you mean"),
        ("adversaries.4.tv=1", "--set adversaries.4.tv=1: adversaries[4].tv: there is no entry '4'"),
        ("training.rounds=0", "--set training.rounds=0: rounds: must be at least 1"),
        ("rounds", "not of the form key=value"),
    ],
)
def test_a_wrong_setting_is_refused(setting: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        grid(TEXT, None, setting)
    assert what in caught.value.problems[0]


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(InputError, match="--scale tinny: there is no such scale; did you mean 'tiny'"):
        grid(TEXT, "tinny")


def test_a_part_of_the_grid_has_the_trainings_that_it_needs() -> None:
    whole = grid()
    part = narrow(whole, ["batch=4", "defense=p90"])
    assert [one.label for one in part.cells] == ["p90-4"]
    assert part.cells[0].hash == cell(whole, "p90", "4").hash
    trained, baseline = part.cells[0].training, part.cells[0].baseline
    # The baseline is only compared with: that takes a few rounds of it, not the whole of it.
    assert trained is not None and baseline is not None and trained.hash != baseline.hash
    assert [one.hash for one in part.trainings] == [trained.hash]
    assert narrow(whole, []).cells == whole.cells
    assert [one.label for one in narrow(whole, ["batch=1,4", "defense=none"]).cells] == ["none-1", "none-4"]


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("batch", "not of the form axis=point"),
        ("batch=", "not of the form axis=point"),
        ("bach=1", "there is no axis 'bach'; did you mean 'batch'?"),
        ("batch=2", "axis 'batch' has no point '2' at this scale"),
    ],
)
def test_a_part_that_is_not_there_is_refused(only: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        narrow(grid(), [only])


def test_a_protocol_names_attackers_where_there_are_any() -> None:
    before, _, after = TEXT.partition('[[table.protocols]]\nname = "plain"\n')
    attackers = '[[table.attackers]]\nname = "any"\nadversaries = ["inversion"]\n'
    protocol = '[[table.protocols]]\nname = "plain"\n' + after.replace("inversion", "any")
    table = parse(f"{before}{attackers}{protocol}", "s.toml", "s").table
    assert table is not None and table.attackers[0].name == table.protocols[0].adversaries[0] == "any"
    with pytest.raises(InputError, match="there is no attacker 'any2'; did you mean 'any'"):
        parse(f"{before}{attackers}{protocol.replace('any', 'any2')}", "s.toml", "s")
    with pytest.raises(InputError, match="there is no adversary 'inversio'; did you mean 'inversion'"):
        parse(f"{before}{attackers.replace('inversion', 'inversio')}{protocol}", "s.toml", "s")
