"""Every number that an experiment file can hold, with every kind of value that it must not take."""

from __future__ import annotations

import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from asking import adversary, check_refused, document, entry, group

from fedsim import plugins
from fedsim.experiment import AdversaryEntry, Clients, Experiment, Group, Runtime, Scores, Server

WHOLE = dict.fromkeys(("1.5", "2.0", "nan", "inf", "true", '"3"', "[3]"), "must be a whole number")
NUMBER = {"nan": "finite", "inf": "finite", "-inf": "finite"} | dict.fromkeys(
    ("false", "true", '"0.1"', "[0.1]"), "must be a number"
)
KINDS: dict[str, dict[str, str]] = {
    # kind: {a value that is wrong: what must be said of it}
    "count": WHOLE | {"-1": "must be at least 1, not -1", "0": "must be at least 1, not 0"},
    "index": WHOLE | {"-1": "must be at least 0, not -1"},
    "2 to 16": WHOLE | {"1": "must be at least 2, not 1", "17": "must be at most 16, not 17"},
    "two": WHOLE | {"1": "must be at least 2, not 1", "-3": "must be at least 2, not -3"},
    "seed": WHOLE | {"-1": "must be at least 0, not -1", str(2**63): f"must be below {2**63}"},
    "positive": NUMBER | {"-0.5": "must be above 0", "0": "must be above 0", "0.0": "must be above 0"},
    "not negative": NUMBER | {"-0.001": "must be at least 0", "-1": "must be at least 0"},
    "fraction": NUMBER | {"-0.1": "must be at least 0", "1.01": "must be at most 1", "2": "must be at most 1"},
    "below 1": NUMBER | {"-0.1": "must be at least 0", "1": "must be below 1", "1.0": "must be below 1"},
    "inside": NUMBER | {"0": "must be above 0", "1": "must be below 1", "1.5": "must be below 1"},
    "below half": NUMBER | {"-0.1": "must be at least 0", "0.5": "must be below 0.5", "1": "must be below 0.5"},
    # `true` is 1 to Python, and 1.0 as well; to a reader of the file they are neither of the two choices.
    "0 or 1": dict.fromkeys(("2", "-1", "0.0", "1.0", "true", "false", '"1"', "nan"), "must be one of 0 or 1"),
    "1 or 3": dict.fromkeys(("2", "-1", "0", "1.0", "true", '"3"', "inf"), "must be one of 1 or 3"),
    "32 or 64": dict.fromkeys(("16", "0", "32.0", "true", '"32"', "nan"), "must be one of 32 or 64"),
    "ckks degree": dict.fromkeys(("1024", "0", "8192.0", "true", '"8192"'), "must be one of 4096"),
    "30 to 50": WHOLE | {"29": "must be at least 30, not 29", "51": "must be at most 50, not 51"},
    "3 or 4": dict.fromkeys(("2", "-1", "0", "3.0", "true", '"3"', "inf"), "must be one of 3 or 4"),
}


@dataclass(frozen=True)
class Number:
    """A key that takes a number. place: a section, or a component's kind and name. many: a list of such numbers, of
    `length`. inherited: the same setting of another class, which is tried once.
    """

    place: str
    key: str
    kind: str
    many: bool = False
    length: int = 1
    inherited: bool = False


LOCAL = (
    ("batch_size", "count"),
    ("local_epochs", "count"),
    ("local_steps", "count"),
    ("learning_rate", "positive"),
    ("momentum", "below 1"),
    ("weight_decay", "not negative"),
)
SECTIONS = [
    Number("", "seed", "seed"),
    Number("", "rounds", "count"),
    *(Number(place, key, kind) for place in ("clients", "groups") for key, kind in LOCAL),
    Number("groups", "members", "index", many=True),
    Number("clients", "count", "count"),
    Number("clients", "per_round", "count"),
    Number("clients", "dropout", "below 1"),
    Number("", "save_rounds", "index", many=True),
    Number("server", "learning_rate", "not negative"),
    Number("server", "milestones", "count", many=True),
    Number("server", "gamma", "positive"),
    Number("server", "evaluate_every", "index"),
    Number("server", "min_clients", "count"),
    Number("runtime", "threads", "count"),
    Number("runtime", "workers", "count"),
    *(Number("runtime", f"cpus_per_{what}", "positive") for what in ("client", "attack")),
    *(Number("runtime", f"gpus_per_{what}", "fraction") for what in ("client", "attack")),
    Number("runtime", "checkpoint_every", "index"),
    *(Number("runtime", f"{what}_timeout", "positive") for what in ("client", "attack")),
    Number("entry", "targets", "index", many=True),
    Number("entry", "rounds", "count", many=True),
    Number("entry", "member", "index"),
    Number("entry", "colluders", "index", many=True),
]
WITH_BOTTLENECK = ("convnet6", "lenet", "mlp", "resnet18", "preact_resnet18")
MATCHING = ("dlg", "idlg", "cpl", "wei", "tag", "geiping", "geiping_fedavg", "dimitrov", "yin", "huang", "carlini")
INVERSION = {
    "count": ("iterations", "patch", "restarts", "together"),
    "index": ("warm_up", "patience"),
    "positive": ("step_size", "tv_p", "tv_q", "time_limit"),
    "not negative": (
        *("langevin", "tag_scale", "tv", "l2", "orthogonality", "bn_prior", "features", "task", "group"),
        "order_invariance",
    ),
}
COMPONENTS = [
    *(Number(f"strategies/{name}", "eta", "positive") for name in ("fedadam", "fedyogi", "fedadagrad")),
    *(Number(f"strategies/{name}", "tau", "positive") for name in ("fedadam", "fedyogi", "fedadagrad")),
    *(Number(f"strategies/{name}", "beta_1", "below 1") for name in ("fedadam", "fedyogi")),
    *(Number(f"strategies/{name}", "beta_2", "below 1") for name in ("fedadam", "fedyogi")),
    Number("strategies/fedavgm", "server_learning_rate", "positive"),
    Number("strategies/fedavgm", "server_momentum", "below 1"),
    Number("strategies/fedtrimmedavg", "beta", "below half"),
    *(Number(f"strategies/{name}", "num_malicious_nodes", "index") for name in ("krum", "multikrum", "bulyan")),
    Number("strategies/multikrum", "num_nodes_to_select", "count"),
    *(Number(f"secure_aggregations/{name}", "bits", "32 or 64") for name in ("ideal", "secagg+")),
    *(Number(f"secure_aggregations/{name}", "clip", "positive") for name in ("ideal", "secagg+")),
    *(Number(f"secure_aggregations/{name}", "statistics_clip", "positive") for name in ("ideal", "secagg+")),
    *(Number(f"secure_aggregations/{name}", "most_examples", "count") for name in ("ideal", "secagg+", "ckks")),
    *(Number(f"secure_aggregations/{name}", "min_survivors", "two") for name in ("ideal", "secagg+", "ckks")),
    *(Number("secure_aggregations/secagg+", key, "below 1") for key in ("corrupt", "dropout")),
    *(Number("secure_aggregations/secagg+", key, "count") for key in ("neighbours", "threshold")),
    Number("secure_aggregations/ckks", "poly_modulus_degree", "ckks degree"),
    Number("secure_aggregations/ckks", "scale_bits", "30 to 50"),
    Number("partitions/dirichlet", "alpha", "positive"),
    Number("partitions/dirichlet", "min_partition_size", "count"),
    Number("partitions/shard", "shards_per_client", "count"),
    Number("partitions/shard", "shard_size", "count"),
    Number("partitions/pathological", "classes_per_client", "count"),
    Number("partitions/first_of_class", "per_class", "count"),
    Number("defenses/gradient_pruning", "ratio", "below 1"),
    Number("defenses/gradient_noise", "std", "not negative"),
    Number("defenses/gradient_clipping", "max_norm", "positive"),
    Number("defenses/dp_sgd", "noise_multiplier", "not negative"),
    *(Number("defenses/dp_sgd", key, "positive") for key in ("max_grad_norm", "target_epsilon")),
    Number("defenses/dp_sgd", "delta", "inside"),
    Number("defenses/dp_sgd", "physical_batch", "count"),
    Number("defenses/quantisation", "bits", "2 to 16"),
    *(Number(f"defenses/{name}", "ratio", "below 1") for name in ("random_sparsification", "soteria", "outpost")),
    *(Number("defenses/outpost", key, "not negative") for key in ("decay", "noise")),
    Number("defenses/outpost", "share", "fraction"),
    *(Number(f"defenses/{name}", "k", "two") for name in ("mixup", "instahide")),
    *(Number(f"defenses/{name}", "upper", "fraction") for name in ("mixup", "instahide")),
    Number("defenses/instahide", "private_share", "fraction"),
    Number("models/convnet6", "width", "count"),
    Number("models/convnet6", "hidden", "count"),
    Number("models/convnet6", "padding", "0 or 1"),
    Number("models/lenet", "width", "count"),
    Number("models/lenet", "layers", "3 or 4"),
    Number("models/mlp", "hidden", "count", many=True),
    Number("datasets/imagefolder", "size", "count"),
    Number("datasets/imagefolder", "channels", "1 or 3"),
    Number("datasets/imagefolder", "test_fraction", "inside"),
    Number("datasets/npz", "classes", "two"),
    Number("models/cnn6", "channels", "count", many=True, length=6),
    *(Number("models/vit", key, "count") for key in ("patch", "dim", "depth", "heads")),
    *(Number("models/vit", key, "positive") for key in ("mlp_ratio", "position_std")),
    *(Number(f"models/{name}", "bottleneck", "index") for name in WITH_BOTTLENECK),
    *(Number(f"models/{name}", "bottleneck_beta", "not negative") for name in WITH_BOTTLENECK),
    *(
        Number(f"adversaries/{name}", key, kind, inherited=name != "geiping")
        for name in MATCHING
        for kind, keys in INVERSION.items()
        for key in keys
    ),
    *(Number("adversaries/carlini", key, "count") for key in ("private_images", "alternations", "decoding_steps")),
    Number("adversaries/carlini", "decoding_step_size", "positive"),
    Number("adversaries/carlini", "decoding_prior", "not negative"),
    Number("adversaries/phong", "tolerance", "positive"),
    Number("adversaries/phong", "least", "below 1"),
    Number("adversaries/spear", "samples", "count"),
    Number("adversaries/spear", "tolerance", "positive"),
    *(Number("adversaries/spear", key, "fraction") for key in ("sparsity", "agreement")),
    Number("adversaries/r_gap", "ridge", "positive"),
    *(Number("adversaries/cocktail_party", key, "count") for key in ("iterations", "restarts", "feature_iterations")),
    *(
        Number("adversaries/cocktail_party", key, "positive")
        for key in ("step_size", "temperature", "relax", "feature_step_size")
    ),
    *(
        Number("adversaries/cocktail_party", key, "not negative")
        for key in ("tv", "negentropy", "decorrelation", "box", "feature_tv")
    ),
    *(Number(f"datasets/{name}", "mean", "fraction", many=True) for name in ("npz", "imagefolder")),
    *(Number(f"datasets/{name}", "std", "positive", many=True) for name in ("npz", "imagefolder")),
]
NUMBERS = SECTIONS + COMPONENTS
CASES = [
    pytest.param(number, value, words, id=f"{number.place}.{number.key}={value}")
    for number in NUMBERS
    if not number.inherited
    for value, words in KINDS[number.kind].items()
]


@pytest.mark.parametrize(("number", "value", "words"), CASES)
def test_a_number_that_cannot_be_is_refused(
    number: Number, value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, key = placed(number, f"[{', '.join([value] + ['1'] * (number.length - 1))}]" if number.many else value)
    check_refused(capsys, tmp_path, text, f"{key}[0]" if number.many else key, words)


@pytest.mark.parametrize("number", [n for n in NUMBERS if n.many], ids=lambda n: f"{n.place}.{n.key}")
def test_a_number_where_a_list_belongs_is_refused(
    number: Number, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, key = placed(number, "1")
    check_refused(capsys, tmp_path, text, key, "must be a list, not 1")


def test_every_number_of_every_section_and_component_is_among_the_cases() -> None:
    sections = {"": Experiment, "clients": Clients, "groups": Group, "server": Server, "runtime": Runtime}
    classes: dict[str, type] = {**sections, "entry": AdversaryEntry, "scores": Scores}
    for kind in plugins.KINDS:
        for name in plugins.names(kind):
            if plugins.origin(kind, name).startswith("fedsim-adversarial "):
                classes[f"{kind}/{name}"] = plugins.load(kind, name)
    there = {
        (place, field.name)
        for place, cls in classes.items()
        for field in fields(cls)
        if _takes_numbers(get_type_hints(cls, include_extras=True)[field.name])
    }
    assert there == {(number.place, number.key) for number in NUMBERS}


def placed(number: Number, value: str) -> tuple[str, str]:
    """A whole file with the number in its place, and the key as an error must name it."""
    place, key = number.place, number.key
    kind, _, name = place.partition("/")
    # Two of these need a file, which is looked for only once all settings make sense.
    path = {("data", "path"): '"nowhere"'} if name in ("npz", "imagefolder") else {}
    match kind:
        case "groups":
            return document(tail=group(**{key: value})), f"clients.groups[0].{key}"
        case "entry":
            return document(tail=adversary(**{key: value})), f"adversaries[0].{key}"
        case "adversaries":
            return document(tail=adversary(name=f'"{name}"', **{key: value}).replace("  #!", "", 1)), (
                f"adversaries[0].{key}"
            )
        case "defenses":
            return document(
                tail=entry("clients.defenses", {key: value}, {"name": f'"{name}"'})
            ), f"clients.defenses[0].{key}"
        case "strategies":
            table = f'{{ name = "{name}", {key} = {value} }}'
            return document({("server", "strategy"): table}), f"server.strategy.{key}"
        case "secure_aggregations":
            table = f'{{ name = "{name}", {key} = {value} }}'
            return document({("server", "secure_aggregation"): table}), f"server.secure_aggregation.{key}"
        case "partitions":
            table = f'{{ kind = "{name}", {key} = {value} }}'
            return document({("data", "partition"): table}), f"data.partition.{key}"
        case "models" | "datasets":
            section = {"models": "model", "datasets": "data"}[kind]
            text = document({(section, "name"): f'"{name}"', **path}).replace("  #!", "")
            return text.replace(f"[{section}]\n", f"[{section}]\n{key} = {value}  #!\n"), f"{section}.{key}"
    return document({(place, key): value}), f"{place}.{key}" if place else key


def _takes_numbers(annotation: Any) -> bool:
    if annotation in (int, float):
        return True
    if get_origin(annotation) is Literal:
        return any(type(choice) in (int, float) for choice in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _takes_numbers(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, frozenset):
        return any(_takes_numbers(part) for part in get_args(annotation))
    return False
