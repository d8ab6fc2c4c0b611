"""Reading experiment files: what a file means, what is filled in, and that a resolved file means the same."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from asking import adversary, document

from fedsim.adversaries import threat
from fedsim.errors import InputError
from fedsim.experiment import Experiment
from fedsim.experiment_file import as_table, as_toml, component, from_table, parse_setting, read, shipped
from fedsim.schema import Problems

SMALLEST = 'rounds = 1\n[data]\nname = "digits"\n[model]\nname = "mlp"\n'
FULL = """
# everything that a file can say
name = "full"
seed = 9223372036854775807
rounds = 7
[data]
name = "cifar10"
root = "somewhere"
download = false
partition = { kind = "pathological", classes_per_client = 3, assignment = "random" }
[model]
name = "mlp"
hidden = []
activation = "gelu"
[clients]
count = 12
per_round = 5
algorithm = "fedavg"
batchnorm = "local"
batch_size = 16
local_epochs = 2
local_steps = 11
learning_rate = 1e-3
momentum = 0.5
weight_decay = 5e-4
defenses = ["gradient_clipping", { name = "gradient_noise", std = 1e-30, kind = "laplace" }]
[[clients.groups]]
members = [0, 3]
batch_size = 2
[[clients.groups]]
members = [1]
defenses = []
[server]
strategy = { name = "fedadam", eta = 0.02 }
learning_rate = 0.25
secure_aggregation = "off"
tls = true
evaluate_every = 3
min_clients = 2
[scores]
lpips = "off"
[runtime]
grid = "inline"
device = "cuda:1"
threads = 2
"""
FILES = {
    "smallest": SMALLEST,
    "full": FULL,
    "short forms": 'rounds = 2\nmodel = "convnet6"\n[data]\nname = "mnist5k"\npartition = "shard"\n'
    '[server]\nstrategy = "fedyogi"\n',
    "dotted keys": 'rounds = 2\nmodel.name = "lenet"\ndata.name = "digits"\ndata.partition.kind = "linear"\n',
    "torchvision": 'rounds = 2\nmodel = "torchvision:resnet18"\n[data]\nname = "digits"\n',
    "fedsgd": SMALLEST + '[clients]\nalgorithm = "fedsgd"\n',
    "inline tables": 'rounds = 1\nmodel = { name = "mlp", hidden = [3] }\ndata = { name = "digits" }\n',
    "odd text": SMALLEST.replace("rounds = 1", 'rounds = 1\nname = "Zürich \\"1\\" # 日本"'),
    "with an adversary": document(tail=adversary()).replace("rounds = 3", 'rounds = 3\nname = "experiment"'),
    "two adversaries": document(
        tail=adversary() + "\n" + adversary(id='"second"', vantage='"server"', rounds="[1, 3]")
    ),
}


def experiment(text: str, folder: Path, *settings: str) -> Experiment:
    """The experiment that a text is."""
    file = folder / "experiment.toml"
    file.write_text(text, encoding="utf-8")
    return read(str(file), settings)


@pytest.mark.parametrize("case", FILES)
def test_a_resolved_file_means_the_same(case: str, tmp_path: Path) -> None:
    first = experiment(FILES[case], tmp_path)
    text = as_toml(first)
    second = experiment(text, tmp_path)
    assert second == first
    assert as_toml(second) == text
    assert from_table(as_table(first)) == first


def test_a_resolved_file_has_every_default_written_out(tmp_path: Path) -> None:
    table = tomllib.loads(as_toml(experiment(SMALLEST, tmp_path)))
    assert table["seed"] == 0
    assert table["data"]["partition"] == {"kind": "iid"}
    assert table["model"].items() >= {"name": "mlp", "hidden": [128], "activation": "relu"}.items()
    assert table["clients"]["batch_size"] == 32
    assert table["server"]["strategy"] == {"name": "fedavg"}
    assert table["runtime"]["device"] == "auto"
    assert table["scores"]["lpips"] == "squeeze"


def test_the_defaults(tmp_path: Path) -> None:
    found = experiment(SMALLEST, tmp_path)
    assert (found.name, found.seed, found.rounds) == ("experiment", 0, 1)
    assert (found.clients.count, found.clients.per_round, found.clients.algorithm) == (10, None, "fedavg")
    assert (found.clients.batchnorm, found.clients.defenses, found.clients.groups) == ("share_running", (), ())
    assert (found.clients.batch_size, found.clients.local_epochs, found.clients.local_steps) == (32, 1, None)
    assert (found.server.strategy.name, found.server.secure_aggregation, found.server.tls) == ("fedavg", None, False)
    assert (found.server.evaluate_every, found.server.min_clients) == (1, 1)
    assert (found.adversaries, found.runtime.threads, found.data.partition.name) == ((), None, "iid")


def test_everything_that_a_file_says_is_taken(tmp_path: Path) -> None:
    found = experiment(FULL, tmp_path)
    assert (found.name, found.seed, found.rounds) == ("full", 2**63 - 1, 7)
    assert found.data.dataset.settings.root == "somewhere"
    assert found.data.dataset.settings.download is False
    assert found.data.partition.settings.classes_per_client == 3
    assert found.model.settings.hidden == ()
    assert (found.clients.count, found.clients.per_round, found.clients.local_steps) == (12, 5, 11)
    assert [defense.name for defense in found.clients.defenses] == ["gradient_clipping", "gradient_noise"]
    assert (found.clients.defenses[1].settings.std, found.clients.defenses[1].settings.kind) == (1e-30, "laplace")
    assert (found.server.strategy.name, found.server.strategy.settings.eta) == ("fedadam", 0.02)
    assert (found.server.learning_rate, found.server.tls, found.server.min_clients) == (0.25, True, 2)
    assert (found.runtime.device, found.runtime.threads, found.scores.lpips) == ("cuda:1", 2, "off")


@pytest.mark.parametrize(
    ("lines", "rate"),
    [
        ("", 1.0),
        ('[clients]\nalgorithm = "fedavg"', 1.0),
        ('[clients]\nalgorithm = "fedsgd"', 0.1),
        ('[clients]\nalgorithm = "fedsgd"\n[server]\nlearning_rate = 1', 1.0),
        ("[server]\nlearning_rate = 0.1", 0.1),
    ],
)
def test_the_servers_rate_depends_on_the_algorithm(lines: str, rate: float, tmp_path: Path) -> None:
    found = experiment(SMALLEST + lines + "\n", tmp_path).server.learning_rate
    assert found == rate
    assert isinstance(found, float)


def test_a_group_has_what_the_clients_have_unless_it_says_otherwise(tmp_path: Path) -> None:
    clients = experiment(FULL, tmp_path).clients
    plain, small, bare = clients.training(2), clients.training(3), clients.training(1)
    assert clients.training(0) == small
    assert (plain.batch_size, small.batch_size, bare.batch_size) == (16, 2, 16)
    assert (plain.learning_rate, small.learning_rate, bare.learning_rate) == (1e-3, 1e-3, 1e-3)
    assert (plain.local_steps, small.local_steps, bare.local_steps) == (11, 11, 11)
    assert (plain.defenses, small.defenses, bare.defenses) == (clients.defenses, clients.defenses, ())


def test_settings_override_the_file(tmp_path: Path) -> None:
    found = experiment(
        FULL,
        tmp_path,
        "rounds=3",
        "clients.count = 20",
        "clients.groups.1.batch_size=5",
        "model=lenet",
        "model.width=7",
        "server.strategy=fedavg",
        "server.tls=false",
        'data.partition={kind="dirichlet", alpha=2}',
        "clients.defenses=[]",
        "name=other name",
        "runtime.device=cpu",
        "clients.learning_rate=1",
    )
    assert (found.rounds, found.clients.count, found.clients.groups[1].batch_size) == (3, 20, 5)
    assert (found.model.name, found.model.settings.width) == ("lenet", 7)
    assert (found.server.strategy.name, found.server.tls) == ("fedavg", False)
    assert (found.data.partition.name, found.data.partition.settings.alpha) == ("dirichlet", 2.0)
    assert (found.clients.defenses, found.name, found.runtime.device) == ((), "other name", "cpu")
    assert found.clients.learning_rate == 1.0


@pytest.mark.parametrize(
    ("settings", "name", "alpha"),
    [
        (("data.partition=dirichlet",), "dirichlet", 0.5),
        (("data.partition=dirichlet", "data.partition.alpha=0.25"), "dirichlet", 0.25),
        (("data.partition.kind=dirichlet", "data.partition.alpha=0.25"), "dirichlet", 0.25),
    ],
)
def test_a_partition_can_be_set_by_its_short_form(
    settings: tuple[str, ...], name: str, alpha: float, tmp_path: Path
) -> None:
    partition = experiment(SMALLEST, tmp_path, *settings).data.partition
    assert (partition.name, partition.settings.alpha) == (name, alpha)


def test_a_setting_of_a_defense_in_its_short_form(tmp_path: Path) -> None:
    text = SMALLEST + '[clients]\ndefenses = ["gradient_noise"]\n'
    found = experiment(text, tmp_path, "clients.defenses.0.std=0.5")
    assert found.clients.defenses[0].settings.std == 0.5


def test_a_data_set_has_the_same_short_form_as_a_model(tmp_path: Path) -> None:
    found = experiment('rounds = 1\ndata = "digits"\nmodel = "mlp"\n', tmp_path)
    assert (found.data.dataset.name, found.data.partition.name) == ("digits", "iid")


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("clients.count=20", ("clients", "count"), 20),
        ("a.0.b=1.5", ("a", 0, "b"), 1.5),
        ("a=true", ("a",), True),
        ("a=[1, 2]", ("a",), [1, 2]),
        ('a={b = "c"}', ("a",), {"b": "c"}),
        ("a=plain words", ("a",), "plain words"),
        ('a="quoted"', ("a",), "quoted"),
        ("a=b=c", ("a",), "b=c"),
        (" a = 1 ", ("a",), 1),
        ("a=", ("a",), ""),
        ("a=torchvision:resnet18", ("a",), "torchvision:resnet18"),
        ("a=/tmp/x.npz", ("a",), "/tmp/x.npz"),
    ],
)
def test_a_setting_is_a_key_and_a_value_of_toml(setting: str, path: tuple[str | int, ...], value: object) -> None:
    assert parse_setting(setting) == (path, value)


def test_a_second_pair_behind_a_line_end_is_not_dropped_in_silence() -> None:
    try:
        _, value = parse_setting("a=1\nb=2")
    except InputError:
        return
    assert value != 1


@pytest.mark.parametrize("setting", ["", "a", "=1", "a..b=1", ".a=1", "a.=1", "."])
def test_a_setting_without_a_key_or_a_value_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match="key=value"):
        parse_setting(setting)


def test_the_file_names_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "some thing.toml").write_text(SMALLEST)
    assert read(str(tmp_path / "some thing.toml")).name == "some thing"


def test_a_table_is_read_without_being_changed() -> None:
    table = {"rounds": 1, "data": {"name": "digits"}, "model": "mlp", "clients": {"groups": [{"members": [0]}]}}
    before = repr(table)
    from_table(table)
    assert repr(table) == before


def test_a_component_is_made_outside_of_a_file() -> None:
    made = component("models", "mlp", ["hidden=[3]"])
    assert (made.name, made.settings.hidden) == ("mlp", (3,))
    assert made.describe().items() >= {"name": "mlp", "hidden": (3,), "activation": "relu"}.items()
    with pytest.raises(InputError, match="must be at least 1, not 0"):
        component("models", "mlp", ["hidden=[0]"])


def test_an_experiment_cannot_be_changed(tmp_path: Path) -> None:
    found = experiment(SMALLEST, tmp_path)
    for thing, key in ((found, "seed"), (found.clients, "count"), (found.model.settings, "hidden")):
        with pytest.raises(AttributeError):
            setattr(thing, key, 5)
    assert hash(found) == hash(experiment(SMALLEST, tmp_path))


def test_experiments_ship() -> None:
    assert "quickstart" in shipped()


@pytest.mark.parametrize("name", shipped())
def test_an_experiment_that_ships_is_valid_and_its_adversaries_get_what_they_need(name: str, tmp_path: Path) -> None:
    found = read(name)
    problems = Problems(name, {}, {})
    threat.check(found, problems)
    assert not problems.found
    assert found.name == name
    assert experiment(as_toml(found), tmp_path) == found


def test_all_rounds_are_written_out() -> None:
    table = {
        "rounds": 3,
        "data": "digits",
        "model": "mlp",
        "clients": {"algorithm": "fedsgd"},
        "adversaries": [
            {"name": "geiping", "vantage": "server", "targets": [0], "rounds": "all", "knows": ["labels"]},
        ],
    }
    assert from_table(table).adversaries[0].rounds == (1, 2, 3)
    with pytest.raises(InputError, match=r"adversaries\[0\].rounds: must be a list"):
        from_table({**table, "adversaries": [{**table["adversaries"][0], "rounds": "every"}]})  # type: ignore[index,dict-item]


@pytest.mark.parametrize(
    ("adversary", "word"),
    [
        ({"aggregate": True, "targets": [0, 1], "knows": ["labels"]}, "no one kind of labels"),
        ({"vantage": "client", "member": 1, "targets": [0], "knows": ["mixing_indices"]}, "sees nothing"),
        ({"targets": [1], "knows": ["mixing_indices"]}, "client 1 has no such defense"),
    ],
)
def test_what_is_known_of_mixtures_has_to_make_sense(adversary: dict[str, Any], word: str) -> None:
    table = {
        "rounds": 1,
        "data": "digits",
        "model": "mlp",
        "clients": {
            "count": 2,
            "algorithm": "fedsgd",
            "groups": [{"members": [0], "defenses": [{"name": "mixup", "k": 2}]}],
        },
        "adversaries": [{"name": "dlg", "vantage": "server", "rounds": [1], **adversary}],
    }
    with pytest.raises(InputError, match=word):
        from_table(table)
