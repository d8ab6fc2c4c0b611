"""What ships for containers and clusters, held against what reads it: Ray's own schema and options, pip, our parser."""

from __future__ import annotations

import copy
import fnmatch
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
import yaml

from fedsim.cli import parser
from fedsim.experiment_file import shipped

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "experiments" / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RAY = importlib.metadata.version("ray")
OURS = importlib.metadata.version("fedsim-adversarial")


# --- Dockerfile ----------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction: comments left out, lines that go on joined."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def arguments() -> dict[str, str]:
    return dict(rest.split("=", 1) for rest in of("ARG"))


def test_the_base_is_pinned_to_the_last_digit() -> None:
    assert instructions()[0] == ("ARG", f"PYTHON={arguments()['PYTHON']}")
    assert re.fullmatch(r"3\.12\.\d+", arguments()["PYTHON"])
    (base,) = of("FROM")
    assert re.fullmatch(r"python:\$\{PYTHON\}-slim-[a-z]+", base)


def test_all_that_is_installed_is_copied_and_not_ignored() -> None:
    copied = {word.rstrip("/") for rest in of("COPY") for word in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    setuptools = PROJECT["tool"]["setuptools"]
    needed = {folder.split("/")[0] for folder in setuptools["package-dir"].values()}
    assert copied == needed | {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert not any(fnmatch.fnmatch(name, rule) for name in copied for rule in rules[1:] if not rule.startswith("!"))


@pytest.mark.parametrize("command", [pytest.param(rest, id=f"RUN {n}") for n, rest in enumerate(of("RUN"))])
def test_every_command_is_good_shell(command: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_to_be_installed_is_read_from_the_project(tmp_path: Path) -> None:
    """The line of the Dockerfile itself is run, with this Python."""
    (command,) = (rest for rest in of("RUN") if "requirements.txt" in rest)
    python = command.split(" > ")[0].removeprefix("python ")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    done = subprocess.run(
        [sys.executable, *shlex.split(python)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    wanted = done.stdout.split("\n")
    assert set(PROJECT["project"]["dependencies"]) < set(wanted)
    assert set(PROJECT["project"]["optional-dependencies"]["ray"]) < set(wanted)
    assert "ray[default]" in wanted  # KubeRay's probes and `ray job submit` speak to what it adds


@pytest.mark.parametrize(
    ("torch", "code", "said"),
    [
        ("cpu", 0, "pip install --index-url https://example.org/whl/cpu torch torchvision"),
        ("cu126", 0, "pip install --index-url https://example.org/whl/cu126 torch torchvision"),
        ("cuda", 0, "pip install torch torchvision"),
        ("gpu", 2, "not 'gpu'"),
    ],
)
def test_the_argument_says_which_torch(torch: str, code: int, said: str) -> None:
    (command,) = (rest for rest in of("RUN") if rest.startswith("case"))
    script = f"pip() {{ echo pip $*; }}; TORCH={torch}; TORCH_INDEX=https://example.org/whl; {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_the_image_does_not_run_as_root_and_knows_where_data_are() -> None:
    names = [name for name, _ in instructions()]
    assert of("USER") == ["fedsim"]
    assert max(index for index, name in enumerate(names) if name == "RUN") < names.index("USER")
    assert "FEDSIM_DATA=/data" in " ".join(of("ENV"))
    assert "TORCH_HOME=/data/torch" in " ".join(of("ENV"))
    assert of("ENTRYPOINT") == ['["fedsim"]']
    hosts = set(re.findall(r"https?://([\w.-]+)", "\n".join(rest for _, rest in instructions())))
    assert hosts == {"pypi.org", "download.pytorch.org"}


# --- the files of experiments/cluster ------------------------------------------------------------------------------


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def kind(name: str, what: str) -> dict[str, Any]:
    (found,) = (one for one in documents(name) if one["kind"] == what)
    return found


def test_they_ship_and_are_no_experiments() -> None:
    files = sorted(path.name for path in CLUSTER.iterdir())
    assert files == ["kuberay-job.yaml", "kuberay.yaml", "machines.yaml"]
    assert "cluster/*.yaml" in PROJECT["tool"]["setuptools"]["package-data"]["fedsim.experiments"]
    there = {entry.name for entry in (resources.files("fedsim.experiments") / "cluster").iterdir()}
    assert there == set(files)
    assert not any("cluster" in name or "kube" in name for name in shipped())


def test_the_launchers_file_is_what_ray_asks_for() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents("machines.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "worker_setup": []}, schema)
    whole = prepare_config(copy.deepcopy(config))
    validate_config(whole)
    assert whole["max_workers"] == len(config["provider"]["worker_ips"]) == 9
    assert any(f"ray[default]=={RAY}" in line for line in config["setup_commands"])
    for line in starts(config):
        assert line.startswith("RAY_AUTH_MODE=token ")
    assert "ray stop" not in json.dumps(whole)


def starts(config: dict[str, Any]) -> list[str]:
    return [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]


def groups() -> Iterator[dict[str, Any]]:
    spec = kind("kuberay.yaml", "RayCluster")["spec"]
    yield spec["headGroupSpec"]
    yield from spec["workerGroupSpecs"]


def test_the_manifest_is_of_one_version_and_one_image() -> None:
    cluster = kind("kuberay.yaml", "RayCluster")
    assert cluster["apiVersion"] == "ray.io/v1"
    assert cluster["spec"]["rayVersion"] == RAY
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    images = {one["image"] for group in groups() for one in group["template"]["spec"]["containers"]}
    assert images == {f"fedsim:{OURS}-cuda"}


def test_every_group_of_the_manifest_is_whole() -> None:
    names = [group.get("groupName", "head") for group in groups()]
    assert names == ["head", "cpu", "gpu"]
    options = {name.removeprefix("--"): value for name, value in start_options().items()}
    for group in groups():
        for key, value in group["rayStartParams"].items():
            assert isinstance(value, str), f"{key}: Kubernetes wants strings here"
            assert key in options, key
        (container,) = group["template"]["spec"]["containers"]
        resources_ = container["resources"]
        assert resources_["requests"] == resources_["limits"]
        assert re.fullmatch(r"\d+", resources_["limits"]["cpu"])
        assert re.fullmatch(r"\d+Gi", resources_["limits"]["memory"])
        claims = {
            one["name"]: one["persistentVolumeClaim"]["claimName"] for one in group["template"]["spec"]["volumes"]
        }
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert mounts["data"] == "/data"  # the image's FEDSIM_DATA
        assert claims.keys() == mounts.keys()
        known = {one["metadata"]["name"] for one in documents("kuberay.yaml") if one["kind"] == "PersistentVolumeClaim"}
        assert set(claims.values()) <= known
        if "groupName" in group:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    gpus = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for group in groups()
    ]
    assert gpus == [None, None, "1"]


def test_all_of_the_manifest_is_in_one_namespace_that_is_closed() -> None:
    found = [*documents("kuberay.yaml"), *documents("kuberay-job.yaml")]
    assert {one["metadata"].get("namespace") for one in found if one["kind"] != "Namespace"} == {"fedsim"}
    assert kind("kuberay.yaml", "Namespace")["metadata"]["name"] == "fedsim"
    policy = kind("kuberay.yaml", "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress"]
    sources = [source for rule in policy["ingress"] for source in rule["from"]]
    assert len(sources) == 2
    assert all("podSelector" in source for source in sources)
    assert not any("ipBlock" in source for source in sources)
    assert kind("kuberay.yaml", "RayCluster")["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_the_job_runs_a_command_of_ours_on_that_cluster() -> None:
    job = kind("kuberay-job.yaml", "RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": kind("kuberay.yaml", "RayCluster")["metadata"]["name"]}
    assert not {"rayClusterSpec", "shutdownAfterJobFinishes"} & spec.keys()  # not with a cluster that is there already
    program, *words = spec["entrypoint"].split()
    options = parser().parse_args(words)
    assert program == "fedsim"
    assert (options.ray, options.experiment, options.resume) == ("auto", "quickstart", True)
    head = next(groups())["template"]["spec"]["containers"][0]
    assert any(Path(options.out).is_relative_to(one["mountPath"]) for one in head["volumeMounts"])


# --- commands that are written down --------------------------------------------------------------------------------


def start_options() -> dict[str, Any]:
    return ray_options("start")


def ray_options(command: str) -> dict[str, Any]:
    """The options of `ray COMMAND`, by their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import cli

    return {name: one for one in cli.commands[command].params for name in (*one.opts, *one.secondary_opts)}


def written() -> list[str]:
    """Every command of the page and of the launcher's file that calls ray or fedsim."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    lines = [line.strip().split("  #")[0].split("   # ")[0].strip() for line in page.splitlines() if line[:4] == "    "]
    lines += [line.split("~/fedsim/bin/", 1)[1] for line in starts(documents("machines.yaml")[0])]
    return [line for line in lines if re.match(r"(ray|fedsim) ", line)]


def test_the_page_has_commands() -> None:
    assert len(written()) > 12


@pytest.mark.parametrize("line", written())
def test_a_command_that_is_written_down_exists(line: str) -> None:
    program, command, *words = shlex.split(line.split(">")[0])
    if program == "fedsim":
        parser().parse_args([command, *words])
        return
    known = ray_options(command.replace("_", "-"))
    assert command != "stop"
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, word


def test_both_ways_of_starting_a_node_use_the_ports_that_the_page_names() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    lines = [line for line in written() if line.startswith("ray start")]
    assert len(lines) == 4
    for line in lines:
        for port in re.findall(r"port=(\d+)", line):
            assert re.search(rf"^\|.*\b{port}\b", page, re.MULTILINE), port
    assert len({tuple(sorted(re.findall(r"--[\w-]*port=\d+", line))) for line in lines}) == 2  # head, and the others


def test_the_page_names_the_files_and_versions_that_ship() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in re.findall(r"experiments/cluster/[\w.-]+", page):
        assert (ROOT / name).is_file(), name
    assert set(re.findall(r"==(\d+\.\d+\.\d+)", page)) == {RAY}
    assert set(re.findall(r"fedsim:(\d+\.\d+\.\d+)-", page)) == {OURS}


def test_nothing_that_ships_for_clusters_stops_all_of_ray() -> None:
    for path in (*CLUSTER.glob("*.yaml"), ROOT / "Dockerfile"):
        commands = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert "ray stop" not in "\n".join(commands), path
