"""Wrong names, wrong types and conflicts: refused by file, line and key, with a suggestion, before anything heavy."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from asking import adversary, ask, check_refused, document, entry, group

Capture = pytest.CaptureFixture[str]


def defense(**keys: str | None) -> str:
    return entry("clients.defenses", keys, {"name": '"gradient_noise"'})


# --- unknown and misspelt keys -------------------------------------------------------------------------------------

MISSPELT_KEYS = {
    # the file, the key that is named, the key that is meant
    "top level": (document({("", "round"): "3"}), "round", "rounds"),
    "seed": (document({("", "sead"): "3"}), "sead", "seed"),
    "data": (document({("data", "partitions"): '"iid"'}), "data.partitions", "partition"),
    "data, name": (document({("data", "nmae"): '"iid"'}), "data.nmae", "name"),
    "data set": (document({("data", "name"): '"cifar10"', ("data", "rot"): '"x"'}).replace("#!", "", 1), "", "root"),
    "model": (document({("model", "hiden"): "[3]"}), "model.hiden", "hidden"),
    "model, name": (document({("model", "nam"): '"mlp"'}), "model.nam", "name"),
    "clients": (document({("clients", "batchsize"): "3"}), "clients.batchsize", "batch_size"),
    "clients, per round": (document({("clients", "clients_per_round"): "3"}), "clients.clients_per_round", "per_round"),
    "clients, rate": (document({("clients", "learning_rat"): "3"}), "clients.learning_rat", "learning_rate"),
    "clients, batchnorm": (document({("clients", "batch_norm"): '"local"'}), "clients.batch_norm", "batchnorm"),
    "clients, algorithm": (document({("clients", "algoritm"): '"local"'}), "clients.algoritm", "algorithm"),
    "group": (document(tail=group(batchsize="4")), "clients.groups[0].batchsize", "batch_size"),
    "group, member": (document(tail=group(member="[1]")), "clients.groups[0].member", "members"),
    "server": (document({("server", "evaluate_evry"): "2"}), "server.evaluate_evry", "evaluate_every"),
    "server, secagg": (
        document({("server", "secure_agregation"): '"off"'}),
        "server.secure_agregation",
        "secure_aggregation",
    ),
    "server, minimum": (document({("server", "minimum_clients"): "2"}), "server.minimum_clients", "min_clients"),
    "strategy": (
        document({("server", "strategy"): '{ name = "fedadam", beta1 = 0.9 }'}),
        "server.strategy.beta1",
        "beta_1",
    ),
    "partition": (
        document({("data", "partition"): '{ kind = "dirichlet", alfa = 1 }'}),
        "data.partition.alfa",
        "alpha",
    ),
    "partition, kind": (
        document({("data", "partition"): '{ kind = "dirichlet", kinds = 1 }'}),
        "data.partition.kinds",
        "kind",
    ),
    "defense": (document(tail=defense(sdt="0.1")), "clients.defenses[0].sdt", "std"),
    "adversary": (document(tail=adversary(vantag='"link"')), "adversaries[0].vantag", "vantage"),
    "adversary, target": (document(tail=adversary(target="[0]")), "adversaries[0].target", "targets"),
    "adversary, knowledge": (document(tail=adversary(know="[]")), "adversaries[0].know", "knows"),
    "adversary, setting": (document(tail=adversary(iteration="5")), "adversaries[0].iteration", "iterations"),
    "scores": (document({("scores", "lpip"): '"alex"'}), "scores.lpip", "lpips"),
    "runtime": (document({("runtime", "thread"): "2"}), "runtime.thread", "threads"),
    "section": (document(tail='[scoring]  #!\nlpips = "alex"'), "scoring", "scores"),
    "runtimes": (document(tail="[runtimes]  #!\nthreads = 2"), "runtimes", "runtime"),
    "adversary, section": (document(tail='[[adversary]]  #!\nname = "geiping"'), "adversary", "adversaries"),
}


@pytest.mark.parametrize("case", MISSPELT_KEYS)
def test_a_misspelt_key_is_told_from_the_one_that_is_meant(case: str, tmp_path: Path, capsys: Capture) -> None:
    text, key, meant = MISSPELT_KEYS[case]
    if case == "data set":
        text, key = text.replace('rot = "x"  ', 'rot = "x"  #!').replace("#!#!", "#!"), "data.rot"
        text = "\n".join(line.replace("#!", "") if "name" in line else line for line in text.split("\n"))
    check_refused(capsys, tmp_path, text, key, "unknown key", f"did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        (document({("", "zzz"): "3"}), "zzz", "rounds"),
        (document({("clients", "zzz"): "3"}), "clients.zzz", "batch_size"),
        (document({("server", "zzz"): "3"}), "server.zzz", "evaluate_every"),
        (document(tail=group(count="4")), "clients.groups[0].count", "members"),
        (document(tail=adversary(plugin='"geiping"')), "adversaries[0].plugin", "vantage"),
        (document({("data", "dataset"): '"digits"'}), "data.dataset", "partition"),
        (document({("server", "strategy"): '{ name = "fedavg", zzz = 1 }'}), "server.strategy.zzz", "name"),
        (document({("model", '"odd.key"'): "1"}), "model.odd.key", "hidden"),
    ],
)
def test_a_key_that_is_like_none_is_answered_with_those_there_are(
    text: str, key: str, known: str, tmp_path: Path, capsys: Capture
) -> None:
    check_refused(capsys, tmp_path, text, key, "unknown key", "known: ", known)


# --- unknown and misspelt names ------------------------------------------------------------------------------------

MISSPELT_NAMES = {
    "data set": (document({("data", "name"): '"cifar01"'}), "data.name", "cifar10"),
    "data set, case": (document({("data", "name"): '"MNIST5k"'}), "data.name", "mnist5k"),
    "model": (document({("model", "name"): '"resnet-18"'}), "model.name", "resnet18"),
    "model, of torchvision": (document({("model", "name"): '"torchvison:resnet18"'}), "model.name", "torchvision"),
    "partition": (
        document({("data", "partition"): '{ kind = "dirichelt", alpha = 1 }'}),
        "data.partition.kind",
        "dirichlet",
    ),
    "strategy": (document({("server", "strategy"): '{ name = "fed_adam" }'}), "server.strategy.name", "fedadam"),
    "defense": (document(tail=defense(name='"gradient_prunning"')), "clients.defenses[0].name", "gradient_pruning"),
    "adversary": (document(tail=adversary(name='"gieping"')), "adversaries[0].name", "geiping"),
    "algorithm": (document({("clients", "algorithm"): '"fedsdg"'}), "clients.algorithm", "fedsgd"),
    "batchnorm": (document({("clients", "batchnorm"): '"share_runing"'}), "clients.batchnorm", "share_running"),
    "secure aggregation": (document({("server", "secure_aggregation"): '"of"'}), "server.secure_aggregation", "off"),
    "vantage": (document(tail=adversary(vantage='"sever"')), "adversaries[0].vantage", "server"),
    "knowledge": (document(tail=adversary(knows='["lables"]')), "adversaries[0].knows[0]", "labels"),
    "power": (document(tail=adversary(powers='["alter_updates"]')), "adversaries[0].powers[0]", "alter_update"),
    "lpips": (document({("scores", "lpips"): '"sqeeze"'}), "scores.lpips", "squeeze"),
    "grid": (document({("runtime", "grid"): '"in-line"'}), "runtime.grid", "inline"),
    "kind of noise": (document(tail=defense(kind='"gausian"')), "clients.defenses[0].kind", "gaussian"),
    "activation": (document({("model", "activation"): '"Relu"'}), "model.activation", "relu"),
}


@pytest.mark.parametrize("case", MISSPELT_NAMES)
def test_a_misspelt_name_is_told_from_the_one_that_is_meant(case: str, tmp_path: Path, capsys: Capture) -> None:
    text, key, meant = MISSPELT_NAMES[case]
    check_refused(capsys, tmp_path, text, key, f"did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (document({("", "model"): '"mlpp"'}).replace('[model]\nname = "mlp"\n', ""), "model.name", "'mlp'"),
        (document({("server", "strategy"): '"fedavgg"'}), "server.strategy.name", "'fedavg'"),
        (document({("data", "partition"): '"idi"'}), "data.partition.kind", "'iid'"),
        (document({("clients", "defenses"): '["gradient_nois"]'}), "clients.defenses[0].name", "'gradient_noise'"),
    ],
)
def test_a_misspelt_short_form_is_told_from_the_one_that_is_meant(
    text: str, key: str, words: str, tmp_path: Path, capsys: Capture
) -> None:
    check_refused(capsys, tmp_path, text, key, f"did you mean {words}?")


@pytest.mark.parametrize(
    ("text", "key", "known"),
    [
        (document({("data", "name"): '"zzz"'}), "data.name", "mnist5k"),
        (document({("model", "name"): '"zzz"'}), "model.name", "convnet6"),
        (document(tail=adversary(name='"zzz"')), "adversaries[0].name", "geiping"),
        (document(tail=adversary(name='"os:system"')), "adversaries[0].name", "geiping"),
        (document({("model", "name"): '"fedsim.models.catalog:MLP"'}), "model.name", "convnet6"),
        (document({("model", "name"): '""'}), "model.name", "convnet6"),
        (document({("clients", "algorithm"): '"zzz"'}), "clients.algorithm", "fedavg"),
        (document(tail=adversary(vantage='"zzz"')), "adversaries[0].vantage", "link"),
        (document(tail=adversary(knows='["zzz"]')), "adversaries[0].knows[0]", "labels"),
        # What a vantage shows is not granted: it is no knowledge.
        (document(tail=adversary(knows='["update"]')), "adversaries[0].knows[0]", "labels"),
    ],
)
def test_a_name_that_is_like_none_is_answered_with_those_there_are(
    text: str, key: str, known: str, tmp_path: Path, capsys: Capture
) -> None:
    check_refused(capsys, tmp_path, text, key, known)


# --- what is missing, and what is of the wrong type ----------------------------------------------------------------

MISSING = {
    # No line of the file is to blame for a section that is not there, so the first is named.
    "rounds": (document({("", "rounds"): None}).replace("seed", "#!\nseed", 1).replace("#!\n", "", 1), "rounds"),
    "data, name": (document({("data", "name"): None}).replace("[data]", "[data]  #!"), "data.name"),
    "model, name": (document({("model", "name"): None}).replace("[model]", "[model]  #!"), "model.name"),
    "strategy, name": (document({("server", "strategy"): "{ eta = 0.1 }"}), "server.strategy.name"),
    "partition, kind": (document({("data", "partition"): "{ alpha = 0.1 }"}), "data.partition.kind"),
    "defense, name": (document({("clients", "defenses"): "[{ std = 0.1 }]"}), "clients.defenses[0].name"),
    "members": (document(tail="[[clients.groups]]  #!\nbatch_size = 4"), "clients.groups[0].members"),
    "adversary, name": (
        document(tail=adversary(name=None).replace("[[adversaries]]", "[[adversaries]]  #!")),
        "adversaries[0].name",
    ),
    "vantage": (
        document(tail=adversary(vantage=None).replace("[[adversaries]]", "[[adversaries]]  #!")),
        "adversaries[0].vantage",
    ),
    "targets": (
        document(tail=adversary(targets=None).replace("[[adversaries]]", "[[adversaries]]  #!")),
        "adversaries[0].targets",
    ),
    "adversary, rounds": (
        document(tail=adversary(rounds=None).replace("[[adversaries]]", "[[adversaries]]  #!")),
        "adversaries[0].rounds",
    ),
    "path of npz": (document({("data", "name"): '"npz"'}), "data.path"),
    "path of imagefolder": (document({("data", "name"): '"imagefolder"'}), "data.path"),
    "architecture": (document({("model", "name"): '"torchvision"'}), "model.architecture"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_named_with_the_line_of_what_should_hold_it(
    case: str, tmp_path: Path, capsys: Capture
) -> None:
    text, key = MISSING[case]
    if "#!" not in text:
        text = text.replace("seed = 0", "seed = 0  #!")
    if case in ("path of npz", "path of imagefolder", "architecture"):
        section = key.partition(".")[0]
        text = text.replace("#!", "").replace(f"[{section}]", f"[{section}]  #!")
    check_refused(capsys, tmp_path, text, key, "missing")


@pytest.mark.parametrize("section", ["data", "model"])
def test_a_missing_section_is_named_with_what_could_stand_there(section: str, tmp_path: Path, capsys: Capture) -> None:
    text = document({(section, "name"): None}).replace(f"[{section}]\n", "").replace("seed = 0", "seed = 0  #!")
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    answer = ask(capsys, "check", str(file))
    assert (answer.code, len(answer.problems)) == (2, 1), answer.err
    assert answer.problems[0].startswith(f"{file}:1: {section}")
    assert "missing" in answer.err
    assert {"data": "mnist5k", "model": "convnet6"}[section] in answer.err


TYPES = {
    "name": (document({("", "name"): "3"}), "name", "text in quotes"),
    "name, date": (document({("", "name"): "1979-05-27"}), "name", "text in quotes"),
    "path, time": (
        document({("data", "path"): "07:32:00"}).replace('name = "digits"', 'name = "npz"'),
        "data.path",
        "text in quotes",
    ),
    "data set": (document({("data", "name"): "5"}), "data.name", "text in quotes"),
    "model, list": (document({("model", "name"): '["mlp"]'}), "model.name", "text in quotes"),
    "model, number": (
        document({("", "model"): "18"}).replace('[model]\nname = "mlp"\n', ""),
        "model",
        "a name or a table",
    ),
    "strategy": (document({("server", "strategy"): "true"}), "server.strategy", "a name or a table"),
    "partition": (document({("data", "partition"): "0.5"}), "data.partition", "a name or a table"),
    "defenses, text": (document({("clients", "defenses"): '"gradient_noise"'}), "clients.defenses", "a list"),
    "defenses, table": (document({("clients", "defenses"): '{ name = "x" }'}), "clients.defenses", "a list"),
    "defense": (document({("clients", "defenses"): "[3]"}), "clients.defenses[0]", "a name or a table"),
    "groups": (document({("clients", "groups"): "3"}), "clients.groups", "[[clients.groups]]"),
    "groups, numbers": (document({("clients", "groups"): "[1, 2]"}), "clients.groups", "[[clients.groups]]"),
    "groups, one table": (document(tail="[clients.groups]  #!\nmembers = [1]"), "clients.groups", "[[clients.groups]]"),
    "adversaries, one table": (
        document(tail='[adversaries]  #!\nname = "geiping"'),
        "adversaries",
        "[[adversaries]]",
    ),
    "adversaries, text": (document({("", "adversaries"): '["geiping"]'}), "adversaries", "[[adversaries]]"),
    "adversaries, number": (document({("", "adversaries"): "1"}), "adversaries", "[[adversaries]]"),
    "tls": (document({("server", "tls"): "1"}), "server.tls", "true or false"),
    "tls, text": (document({("server", "tls"): '"yes"'}), "server.tls", "true or false"),
    "download": (
        document({("data", "download"): '"no"'}).replace('name = "digits"', 'name = "cifar10"'),
        "data.download",
        "true or false",
    ),
    "knows, text": (document(tail=adversary(knows='"labels"')), "adversaries[0].knows", "a list"),
    "knows, number": (document(tail=adversary(knows="[1]")), "adversaries[0].knows[0]", "labels"),
    "id": (document(tail=adversary(id="7")), "adversaries[0].id", "text in quotes"),
    "vantage": (document(tail=adversary(vantage="0")), "adversaries[0].vantage", "link"),
    "targets, a word": (document(tail=adversary(targets='"some"')), "adversaries[0].targets", "a list"),
    "lpips": (document({("scores", "lpips"): "false"}), "scores.lpips", "'off'"),
    "device": (document({("runtime", "device"): '"gpu"'}), "runtime.device", "cuda"),
    "device, number": (document({("runtime", "device"): "0"}), "runtime.device", "text in quotes"),
    "device, index": (document({("runtime", "device"): '"cuda:x"'}), "runtime.device", "cuda"),
    "section, list": (
        document(tail="[[server]]  #!").replace("[server]\nlearning_rate = 0.5\n", ""),
        "server",
        "table",
    ),
    "section, number": (
        document({("", "clients"): "10"}).replace("[clients]\ncount = 4\nbatch_size = 4\n", ""),
        "clients",
        "[clients]",
    ),
    "section, text": (document({("", "runtime"): '"cpu"'}), "runtime", "[runtime]"),
    "scale of a date": (document({("clients", "learning_rate"): "1979-05-27"}), "clients.learning_rate", "a number"),
}


@pytest.mark.parametrize("case", TYPES)
def test_a_value_of_the_wrong_type_is_refused(case: str, tmp_path: Path, capsys: Capture) -> None:
    text, key, words = TYPES[case]
    check_refused(capsys, tmp_path, text, key, "must ", words)


def test_a_device_is_asked_for_in_words_and_not_in_a_pattern(tmp_path: Path, capsys: Capture) -> None:
    problem = check_refused(
        capsys, tmp_path, document({("runtime", "device"): '"gpu"'}), "runtime.device", "auto", "cpu"
    )
    assert not set("^$\\?") & set(problem.partition("runtime.device")[2])


# --- names that become files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "/tmp/x", "", "a\\u0000b", "a\\nb", "x" * 300])
@pytest.mark.parametrize("key", ["name", "id"])
def test_a_name_that_makes_no_file_name_is_refused(key: str, name: str, tmp_path: Path, capsys: Capture) -> None:
    """`name` becomes the run's folder, an adversary's `id` a part of its pictures' names."""
    text = document({("", "name"): f'"{name}"'}) if key == "name" else document(tail=adversary(id=f'"{name}"'))
    check_refused(capsys, tmp_path, text, "name" if key == "name" else "adversaries[0].id", "must ")


# --- NAME:VALUE ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (document({("model", "name"): '"resnet18:50"'}), "model.name"),
        (document({("data", "name"): '"digits:8"'}), "data.name"),
        (document({("server", "strategy"): '{ name = "fedavg:2" }'}), "server.strategy.name"),
        (document({("data", "partition"): '{ kind = "iid:2" }'}), "data.partition.kind"),
    ],
)
def test_a_value_behind_the_name_of_what_takes_none_is_refused(
    text: str, key: str, tmp_path: Path, capsys: Capture
) -> None:
    check_refused(capsys, tmp_path, text, key, "no setting")


def test_a_setting_behind_the_name_and_again_beside_it_is_refused(tmp_path: Path, capsys: Capture) -> None:
    text = document({("model", "architecture"): '"resnet50"'}).replace('"mlp"', '"torchvision:resnet18"')
    check_refused(capsys, tmp_path, text, "model.architecture", "resnet18")


# --- what must hold between keys -----------------------------------------------------------------------------------

CONFLICTS = {
    "more clients a round than clients": (
        document({("clients", "per_round"): "5"}),
        "clients.per_round",
        ("5", "there are 4", "clients.count"),
    ),
    "more updates required than clients": (
        document({("server", "min_clients"): "5"}),
        "server.min_clients",
        ("5", "only 4"),
    ),
    "more updates required than clients a round": (
        document({("server", "min_clients"): "3"}).replace("count = 4", "count = 4\nper_round = 2"),
        "server.min_clients",
        ("3", "only 2"),
    ),
    "krum with too few": (
        document({("server", "strategy"): '{ name = "krum", num_malicious_nodes = 1 }'}),
        "server.strategy",
        ("at least 5", "4"),
    ),
    "multikrum with too few": (
        document({("server", "strategy"): '{ name = "multikrum", num_malicious_nodes = 1 }'}),
        "server.strategy",
        ("at least 5", "4"),
    ),
    "multikrum that selects more than there are": (
        document({("server", "strategy"): '{ name = "multikrum", num_nodes_to_select = 5 }'}),
        "server.strategy",
        ("num_nodes_to_select = 5", "only 4"),
    ),
    "bulyan with too few": (
        document({("server", "strategy"): '{ name = "bulyan", num_malicious_nodes = 1 }'}),
        "server.strategy",
        ("at least 7", "4"),
    ),
    "krum with too few a round": (
        document({("server", "strategy"): '"krum"'}).replace("count = 4", "count = 4\nper_round = 2"),
        "server.strategy",
        ("at least 3", "2"),
    ),
    "a member that is no client": (
        document(tail=group(members="[1, 4]")),
        "clients.groups[0].members[1]",
        ("no client 4", "0 to 3"),
    ),
    "a client in two groups": (
        document(tail="[[clients.groups]]\nmembers = [1]\n" + group(members="[2, 1]")),
        "clients.groups[1].members[1]",
        ("client 1", "group 0"),
    ),
    "a client twice in one group": (
        document(tail=group(members="[2, 2]")),
        "clients.groups[0].members[1]",
        ("client 2",),
    ),
    "a group of nobody": (document(tail=group(members="[]")), "clients.groups[0].members", ("at least one",)),
    "local epochs of fedsgd": (
        document({("clients", "local_epochs"): "2"}).replace("count = 4", 'count = 4\nalgorithm = "fedsgd"'),
        "clients.local_epochs",
        ("fedsgd", "fedavg"),
    ),
    "local steps of fedsgd": (
        document({("clients", "local_steps"): "2"}).replace("count = 4", 'count = 4\nalgorithm = "fedsgd"'),
        "clients.local_steps",
        ("fedsgd", "fedavg"),
    ),
    "local steps of a group of fedsgd": (
        document(tail=group(local_steps="2")).replace("count = 4", 'count = 4\nalgorithm = "fedsgd"'),
        "clients.groups[0].local_steps",
        ("fedsgd", "fedavg"),
    ),
    "batch statistics of a model without BatchNorm": (
        document(tail=adversary(knows='["labels", "batch_statistics"]')),
        "adversaries[0].knows[1]",
        ("BatchNorm", "mlp"),
    ),
    "running statistics of a model without BatchNorm": (
        document(tail=adversary(knows='["running_statistics"]')),
        "adversaries[0].knows[0]",
        ("BatchNorm", "mlp"),
    ),
    "a target that is no client": (
        document(tail=adversary(targets="[0, 4]")),
        "adversaries[0].targets[1]",
        ("no client 4", "0 to 3"),
    ),
    "a round that there is not": (
        document(tail=adversary(rounds="[1, 4]")),
        "adversaries[0].rounds[1]",
        ("no round 4", "rounds = 3"),
    ),
    "no target": (document(tail=adversary(targets="[]")), "adversaries[0].targets", ("at least one",)),
    "no round": (document(tail=adversary(rounds="[]")), "adversaries[0].rounds", ("at least one",)),
    "a target twice": (document(tail=adversary(targets="[1, 1]")), "adversaries[0].targets", ("twice",)),
    "a round twice": (document(tail=adversary(rounds="[2, 2]")), "adversaries[0].rounds", ("twice",)),
    "two adversaries of one name": (
        document(tail=adversary() + "\n" + adversary().replace("[[adversaries]]", "[[adversaries]]  #!")),
        "adversaries[1]",
        ("geiping", "id"),
    ),
    "two adversaries of one id": (
        document(tail=adversary(id='"eve"').replace("  #!", "") + "\n" + adversary(id='"eve"')),
        "adversaries[1].id",
        ("eve", "id"),
    ),
    "a member of a link": (document(tail=adversary(member="1")), "adversaries[0].member", ("client", "link")),
    "a sum that is seen from a link": (
        document(tail=adversary(aggregate="true")),
        "adversaries[0].aggregate",
        ("sum", '"link"', 'use "server"'),
    ),
    "a sum that is seen from a client": (
        document(tail=adversary(aggregate="true").replace('"link"', '"client"\nmember = 1')),
        "adversaries[0].aggregate",
        ("sum", '"client"', 'use "server"'),
    ),
    "a sum of updates at different rates": (
        document(
            tail=group(learning_rate="0.5").replace("  #!", "")
            + "\n"
            + adversary(targets="[0, 1]").replace('"link"', '"server"\naggregate = true')
        ),
        "adversaries[0].targets",
        ("learning_rate", "sum"),
    ),
    "the defenses of a sum of clients with different ones": (
        document(
            tail=group(defenses='[{ name = "gradient_noise" }]').replace("  #!", "")
            + "\n"
            + adversary(knows='["labels", "defenses"]')
            .replace('"link"', '"server"\naggregate = true')
            .replace("targets = [0]", "targets = [0, 1]")
        ),
        "adversaries[0].knows",
        ("different defenses", 'leave "defenses" out'),
    ),
    "a member of a server": (
        document(tail=adversary(member="1").replace('"link"', '"server"')),
        "adversaries[0].member",
        ("client", "server"),
    ),
}
THREATS = {
    # What the threat model refuses: the plugin and the missing item are named.
    "an update, behind TLS": (
        document(tail=adversary(vantage='"link"')).replace("[server]", "[server]\ntls = true"),
        "adversaries[0]",
        ("geiping", "update", "TLS", "server"),
    ),
    "an update, from a client": (
        document(tail=adversary(vantage='"client"').replace("targets = [0]", "targets = [0]\nmember = 1")),
        "adversaries[0]",
        ("geiping", "update", "server"),
    ),
    "labels that it takes for granted": (
        document(tail=adversary(knows="[]")),
        "adversaries[0]",
        ("geiping", "labels", "knows"),
    ),
    "defenses that it takes for granted": (
        document(tail=adversary(aware="true")),
        "adversaries[0]",
        ("geiping", "defenses", "knows"),
    ),
    "statistics of a model without BatchNorm": (
        document(tail=adversary(batchnorm='"exact"')),
        "adversaries[0]",
        ("geiping", "batch_statistics", "mlp", "no BatchNorm"),
    ),
    "batch statistics that stay at home": (
        document(tail=adversary(batchnorm='"exact"')).replace('"mlp"', '"resnet18"'),
        "adversaries[0]",
        ("geiping", "batch_statistics", "knows"),
    ),
    "running statistics that stay at home": (
        document({("clients", "batchnorm"): '"local"'}, tail=adversary(batchnorm='"infer"')).replace(
            '"mlp"', '"resnet18"'
        ),
        "adversaries[0]",
        ("geiping", "running_statistics", "knows"),
    ),
    # The attack would fail on the first job, after the training.
    "no mode for the BatchNorm of a model that has it": (
        document(tail=adversary(batchnorm='"none"')).replace('"mlp"', '"resnet18"'),
        "adversaries[0]",
        ("geiping", "batchnorm", "resnet18"),
    ),
    "a power": (document(tail=adversary(powers='["alter_update"]')), "adversaries[0]", ("alter_update", "powers")),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_a_conflict_names_both_sides(case: str, tmp_path: Path, capsys: Capture) -> None:
    text, key, words = CONFLICTS[case]
    check_refused(capsys, tmp_path, text, key, *words)


@pytest.mark.parametrize("case", THREATS)
def test_what_a_threat_model_does_not_grant_is_refused_by_file_and_line(
    case: str, tmp_path: Path, capsys: Capture
) -> None:
    text, key, words = THREATS[case]
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    answer = ask(capsys, "check", str(file))
    header = 1 + text.split("\n").index("[[adversaries]]")
    last = len(text.rstrip().split("\n"))
    assert answer.code == 2, answer
    for problem in answer.problems:
        place, _, rest = problem.partition(": ")
        path, _, line = place.rpartition(":")
        assert path == str(file), problem
        assert header <= int(line) <= last, problem
        assert rest.startswith(key), problem
    for word in words:
        assert word in answer.err


@pytest.mark.parametrize("member", [None, "9"])
def test_an_adversary_that_is_a_client_says_which(member: str | None, tmp_path: Path, capsys: Capture) -> None:
    text = document(tail=adversary(vantage='"client"', member=member).replace("  #!", ""))
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    answer = ask(capsys, "check", str(file))
    assert answer.code == 2
    assert any("adversaries[0].member: " in problem for problem in answer.problems), answer.err
    assert ("missing" if member is None else "no client 9") in answer.err


# --- more than one mistake -----------------------------------------------------------------------------------------


def test_all_mistakes_are_said_at_once_in_the_order_of_a_readers_eye(tmp_path: Path, capsys: Capture) -> None:
    changes: dict[tuple[str, str], str | None] = {
        ("", "seed"): "-1",
        ("data", "name"): '"digit"',
        ("model", "hidden"): "[0, 1.5]",
        ("clients", "count"): "0",
        ("server", "min_clients"): "0",
        ("runtime", "threads"): "0",
    }
    file = tmp_path / "experiment.toml"
    file.write_text(document(changes))
    answer = ask(capsys, "check", str(file))
    keys = {problem.split(": ")[1] for problem in answer.problems}
    assert answer.code == 2
    assert len(answer.problems) == 7
    assert keys == {
        "seed",
        "data.name",
        "model.hidden[0]",
        "model.hidden[1]",
        "clients.count",
        "server.min_clients",
        "runtime.threads",
    }


def test_several_conflicts_are_said_at_once(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(
        document({("clients", "per_round"): "9", ("server", "min_clients"): "8"}, tail=group(members="[7]"))
    )
    answer = ask(capsys, "check", str(file))
    assert (answer.code, len(answer.problems)) == (2, 3), answer.err


def test_a_thousand_mistakes_of_one_kind_do_not_bury_the_others(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document(tail=group(members=str(list(range(1000))))))
    answer = ask(capsys, "check", str(file))
    assert answer.code == 2
    assert len(answer.problems) <= 50


# --- --set ---------------------------------------------------------------------------------------------------------

SETTINGS = {
    # the setting, the key of the error, words
    "range": ("clients.count=0", "clients.count", "at least 1"),
    "type": ("rounds=many", "rounds", "whole number"),
    "no value": ("rounds=", "rounds", "whole number"),
    "unknown": ("clients.cuont=3", "clients.cuont", "'count'"),
    "unknown section": ("client.count=3", "client", "'clients'"),
    "name": ("model.name=mlpp", "model.name", "'mlp'"),
    "conflict": ("clients.per_round=9", "clients.per_round", "there are 4"),
    "table for a section": ("clients=3", "clients", "[clients]"),
    "a number as a key": ("clients.0=1", "clients.0", "unknown key"),
    "list where a table belongs": ("server=[1]", "server", "[server]"),
    "groups that the file has not": ("clients.groups.0.members=[1]", "clients.groups", "[[clients.groups]]"),
    "a list in a list": ("model.hidden=[8, [9]]", "model.hidden[1]", "whole number"),
}
FORMS = {
    # settings that no key can be told from, and what must be said
    "no equals sign": ("rounds", "key=value"),
    "no key": ("=3", "key=value"),
    "an empty part": ("clients..count=3", "key=value"),
    "a dot at the end": ("clients.=3", "key=value"),
    "nothing": ("", "key=value"),
    "into a number": ("rounds.x=1", "rounds"),
    "into a number of a section": ("clients.count.x=1", "count"),
    "an entry that the list has not": ("model.hidden.7=1", "2 entries"),
    "an adversary that the file has not": ("adversaries.3.rounds=[1]", "1 entr"),
    "an adversary counted from the end": ("adversaries.-1.rounds=[1]", "entr"),
    "a word where a number belongs": ("adversaries.geiping.rounds=[1]", "entr"),
    "a digit that is no number": ("adversaries.².rounds=[1]", "entr"),
}


@pytest.fixture
def valid(tmp_path: Path) -> str:
    file = tmp_path / "experiment.toml"
    file.write_text(document({("model", "hidden"): "[8, 9]"}, tail=adversary()))
    return str(file)


@pytest.mark.parametrize("case", SETTINGS)
def test_a_mistake_on_the_command_line_is_named_as_such(case: str, valid: str, capsys: Capture) -> None:
    setting, key, words = SETTINGS[case]
    answer = ask(capsys, "check", valid, "--set", setting)
    assert (answer.code, len(answer.problems)) == (2, 1), answer.err
    assert answer.problems[0].startswith(f"--set {setting}: {key}"), answer.err
    assert words in answer.err


@pytest.mark.parametrize("case", FORMS)
def test_a_setting_that_leads_nowhere_is_refused(case: str, valid: str, capsys: Capture) -> None:
    setting, words = FORMS[case]
    answer = ask(capsys, "check", valid, "--set", setting)
    assert (answer.code, len(answer.problems)) == (2, 1), answer.err
    assert answer.problems[0].startswith(f"--set {setting}: "), answer.err
    assert words in answer.err


def test_of_two_settings_the_one_at_fault_is_named(valid: str, capsys: Capture) -> None:
    answer = ask(capsys, "check", valid, "--set", "clients.count=5", "--set", "clients.per_round=6")
    assert answer.err.startswith("--set clients.per_round=6: clients.per_round: 6")
    assert "--set clients.count" not in answer.err


def test_a_setting_can_make_a_key_of_the_file_wrong_which_is_then_named_by_its_line(
    tmp_path: Path, capsys: Capture
) -> None:
    text = document({("clients", "per_round"): "3"})
    file = tmp_path / "experiment.toml"
    file.write_text(text)
    answer = ask(capsys, "check", str(file), "--set", "clients.count=2")
    line = 1 + next(i for i, line in enumerate(text.split("\n")) if "per_round" in line)
    assert answer.code == 2
    assert answer.err.startswith(f"{file}:{line}: clients.per_round: 3 clients a round, but there are 2")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("model=mlpp",), "model.name"),
        (("model=mlp", "model.hiden=[3]"), "model.hiden"),
        (("model=mlp", "model.hidden=[0]"), "model.hidden[0]"),
        (("server.strategy=fedadam", "server.strategy.eta=-1"), "server.strategy.eta"),
        (("data.partition=dirichlet", "data.partition.alpha=0"), "data.partition.alpha"),
        (('data.partition={kind="dirichlet"}', "data.partition.alpha=0"), "data.partition.alpha"),
        (('clients.defenses=["gradient_noise"]', "clients.defenses.0.std=-1"), "clients.defenses[0].std"),
    ],
    ids=str,
)
def test_settings_work_on_short_forms(settings: tuple[str, ...], key: str, tmp_path: Path, capsys: Capture) -> None:
    check_refused(capsys, tmp_path, document(), key, settings=settings)


# --- the other commands --------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "done-1"
    for part in ("captures", "jobs", "truth", "reconstructions"):
        (folder / part).mkdir(parents=True)
    (folder / "experiment.toml").write_text(document(tail=adversary()))
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--adversary", "geipping"), ("no adversary is called 'geipping'", "did you mean 'geiping'?")),
        (
            ("--adversary", "geiping", "--set", "iterations=-1"),
            ("--set iterations=-1: iterations: must be at least 1",),
        ),
        (("--adversary", "geiping", "--set", "iterations=true"), ("--set iterations=true: ", "whole number, not true")),
        (("--adversary", "geiping", "--set", "iteration=5"), ("--set iteration=5: ", "did you mean 'iterations'?")),
        (("--adversary", "geiping", "--set", "iterations"), ("--set iterations: ", "key=value")),
        # The place of an earlier run's adversary is what the run was: it cannot be changed afterwards.
        (("--adversary", "geiping", "--set", "vantage=server"), ("--set vantage=server: ", "unknown key")),
    ],
)
def test_attack_refuses_bad_input(
    arguments: tuple[str, ...], words: tuple[str, ...], run_folder: Path, capsys: Capture
) -> None:
    answer = ask(capsys, "attack", str(run_folder), *arguments)
    assert (answer.code, len(answer.problems)) == (2, 1), answer.err
    for word in words:
        assert word in answer.err


@pytest.mark.parametrize("command", [("attack", "--adversary", "geiping"), ("report",)])
@pytest.mark.parametrize("place", ["nowhere", "file.txt", "empty"])
def test_what_is_no_run_folder_is_refused(
    command: tuple[str, ...], place: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    answer = ask(capsys, command[0], str(tmp_path / place), *command[1:])
    assert (answer.code, len(answer.problems)) == (2, 1), answer.err
    assert answer.err.startswith(f"{tmp_path / place}: ")
    assert not list((tmp_path / "empty").iterdir())


def test_mistakes_are_one_json_event_for_machines(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(document({("clients", "count"): "0", ("", "seed"): "-1"}))
    answer = ask(capsys, "check", str(file), "--json")
    event = json.loads(answer.out)
    assert (event["event"], event["exit"], answer.code) == ("error", 2, 2)
    assert sorted(problem.split(": ")[1] for problem in event["problems"]) == ["clients.count", "seed"]


# --- before anything heavy is imported, and at once ----------------------------------------------------------------

SCRIPT = textwrap.dedent("""
    import sys, time
    from fedsim.cli import main
    for words in {lines!r}:
        start = time.perf_counter()
        code = main(words)
        took = time.perf_counter() - start
        heavy = sorted({{"torch", "ray", "flwr", "torchvision", "numpy"}} & set(sys.modules))
        assert code == 2, (words, code)
        assert not heavy, (words, heavy)
        assert took < 2, (words, took)
""")


def test_every_kind_of_mistake_is_answered_before_torch_and_at_once(run_folder: Path, tmp_path: Path) -> None:
    """One process for all; each line is a mistake of another kind, and what it imports would show."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(document())
    bad.write_text(document(tail=adversary(targets="[9]")))
    syntax = tmp_path / "syntax.toml"
    syntax.write_text("rounds = = 3\n")
    tls = tmp_path / "tls.toml"
    tls.write_text(document(tail=adversary()).replace("[server]", "[server]\ntls = true"))
    taken = tmp_path / "taken"
    (taken / "x").mkdir(parents=True)
    lines = [
        ["run", str(bad)],
        ["check", str(bad)],
        ["run", str(syntax)],
        ["run", str(tls)],
        ["run", str(tmp_path / "nowhere.toml")],
        ["run", "no-such-experiment"],
        ["run", str(tmp_path)],
        ["run", str(good), "--set", "rounds=0"],
        ["run", str(good), "--set", "rounds"],
        *(["run", str(good), "--set", f"model.name={name}"] for name in ("resnet", "torchvision")),
        ["run", str(good), "--set", "data.name=npz", "--set", "data.path=nowhere.npz"],
        ["run", str(good), "--set", "data.name=imagefolder", "--set", "data.path=nowhere"],
        ["run", str(good), "--set", "clients.per_round=5"],
        ["run", str(good), "--set", 'clients.defenses=[{name="gradient_noise", std=-1}]'],
        ["run", str(good), "--set", "server.strategy=krum", "--set", "clients.count=2"],
        ["run", str(good), "--out", str(taken)],
        ["run", str(good), "--out", str(good)],
        ["run", str(good), "--out", str(good / "below")],
        ["run", str(good), "--json", "--set", "rounds=0"],
        ["attack", str(run_folder), "--adversary", "nobody"],
        ["attack", str(run_folder), "--adversary", "geiping", "--set", "iterations=0"],
        ["attack", str(tmp_path / "nowhere"), "--adversary", "geiping"],
        ["report", str(tmp_path / "nowhere")],
        ["list", "modells"],
    ]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(lines=lines)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "something was written"


@pytest.mark.parametrize("setting", ["rounds=0", "adversaries.0.iterations=0", "data.name=cifar"])
def test_a_mistake_is_answered_within_two_seconds_from_a_cold_start(setting: str, valid: str) -> None:
    """By CPU time, so that a busy machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "fedsim", "run", valid, "--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"--set {setting}: ")
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 2
