"""`fedsim doctor --ray`: a real cluster of three nodes on this machine, one of them poor, one with another fedsim."""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from fedsim import plugins
from fedsim.cluster import checkup, looking
from fedsim.cluster.checkup import Answer, Finding
from fedsim.cluster.connecting import Node
from fedsim.commands import doctor
from fedsim.errors import InputError

OTHER = "raise ImportError('this fedsim is a scarecrow')\n"


@dataclass(frozen=True)
class Seen:
    """One examination. ids: of the nodes, beginnings, in the order in which they joined."""

    cluster: Any
    ids: list[str]
    findings: list[Finding]
    said: list[str]

    def of(self, node: int, what: str = "") -> list[tuple[str, str]]:
        """(state, detail) of what was found about a node."""
        return [
            (state, detail)
            for state, name, detail in self.findings
            if f"({self.ids[node]})" in name and (name.endswith(f": {what}") if what else ": " not in name)
        ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    from ray.cluster_utils import Cluster

    base = tmp_path_factory.mktemp("doctor")
    (base / "scarecrow" / "fedsim").mkdir(parents=True)
    (base / "scarecrow" / "fedsim" / "__init__.py").write_text(OTHER)
    (base / "rich" / "MNIST").mkdir(parents=True)
    (base / "poor").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_DATA", str(base / "rich"))
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(base)  # Ray puts a driver's working folder on the path of all workers, before everything else
        small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        files = tempfile.mkdtemp(prefix="fedsim-doctor-")  # pytest's own folders have names too long for sockets
        cluster = Cluster(
            initialize_head=True, head_node_args={**small, "num_cpus": 2, "temp_dir": files, "include_dashboard": False}
        )
        try:
            others = [
                cluster.add_node(**small, env_vars={"FEDSIM_DATA": str(base / "poor")}),
                cluster.add_node(**small, env_vars={"PYTHONPATH": str(base / "scarecrow")}),
            ]
            ids = [one.node_id[:6] for one in (cluster.head_node, *others)]
            said: list[str] = []
            found = checkup.findings(cluster.address, said.append)
            yield Seen(cluster, ids, found, said)
        finally:
            cluster.shutdown()
            shutil.rmtree(files, ignore_errors=True)


def test_every_node_is_found_with_what_it_has(seen: Seen) -> None:
    assert len(set(seen.ids)) == 3
    for node, cpus in enumerate(("2 CPUs", "1 CPU", "1 CPU")):
        ((state, detail),) = seen.of(node)
        assert state == "ok"
        assert detail.startswith(f"{cpus}, ")
        assert "GiB memory" in detail
        assert "0.1 GiB object store" in detail
    (cluster,) = [detail for _, what, detail in seen.findings if what == "cluster"]
    assert cluster.startswith("3 nodes with 4 CPUs")
    assert any("asking" in line and all(one in line for one in seen.ids) for line in seen.said)


def test_a_node_like_this_machine_is_well(seen: Seen) -> None:
    for what in ("versions", "plugins", "weights", "data"):
        ((state, detail),) = seen.of(0, what)
        assert state == "ok", detail
    ((_, versions),) = seen.of(0, "versions")
    assert all(word in versions for word in ("python 3.", "ray 2.", "torch 2.", "flwr 1."))
    total = sum(len(plugins.names(kind)) for kind in (*plugins.KINDS, "maskings", "unmaskings"))
    assert seen.of(0, "plugins") == [("ok", f"all {total} of here can be imported")]


def test_data_that_lies_here_alone_is_missed_there(seen: Seen) -> None:
    ((state, detail),) = seen.of(1, "data")
    assert state == "absent"
    assert "MNIST" in detail
    assert "poor" in detail
    assert [state for state, _ in seen.of(1, "plugins")] == ["ok"]


def test_a_node_without_our_fedsim_is_named_and_broken(seen: Seen) -> None:
    ((state, detail),) = seen.of(2, "fedsim")
    assert state == "broken"
    assert "this fedsim is a scarecrow" in detail
    assert "on every node" in detail
    # What it can say without fedsim, it says all the same.
    assert seen.of(2, "versions")
    assert [what for state, what, _ in seen.findings if state == "broken"] == [_name(seen)]


def _name(seen: Seen) -> str:
    return next(what for _, what, _ in seen.findings if f"({seen.ids[2]}): fedsim" in what)


def test_nothing_is_left_behind(seen: Seen) -> None:
    import ray

    assert not ray.is_initialized()
    ray.init(seen.cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        from ray._private.state import actors

        assert sum(one["Alive"] for one in ray.nodes()) == 3
        assert actors() == {}
        deadline = time.monotonic() + 10
        while ray.available_resources().get("CPU") != 4 or _ours():
            assert time.monotonic() < deadline, (ray.available_resources(), _ours())
            time.sleep(0.2)
    finally:
        ray.shutdown()


def _ours() -> list[str]:
    """The titles of processes that a doctor's question runs in."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [title for title in found if title.startswith("ray::fedsim doctor")]


def test_a_node_that_does_not_answer_holds_nothing_up(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Any:
        def errand(packages: tuple[str, ...], gpus: bool) -> None:
            import time

            time.sleep(600)

        return errand

    monkeypatch.setattr(checkup, "_errand", never)
    monkeypatch.setattr(checkup, "_here", _answer)
    found = checkup.findings(seen.cluster.address, patience=1)
    late = [detail for state, _, detail in found if state == "broken"]
    assert len(late) == 3
    assert all("does not answer within 1 s" in detail for detail in late)


def test_the_command_ends_with_1_where_a_node_is_broken(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkup, "findings", lambda address, say: seen.findings)
    assert doctor.run(argparse.Namespace(json=True, ray=seen.cluster.address)) == 1
    found = json.loads(capsys.readouterr().out)
    assert all(set(one) == {"state", "what", "detail"} for one in found)
    assert {one["what"] for one in found} >= {"python", "cluster", "authentication", _name(seen)}
    assert doctor.run(argparse.Namespace(json=False, ray=seen.cluster.address)) == 1
    assert "this fedsim is a scarecrow" in capsys.readouterr().out


def test_an_address_where_nobody_answers_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1"):
        checkup.findings("127.0.0.1:1")


# --- what is made of answers ---------------------------------------------------------------------------------------


def _answer() -> Answer:
    return {
        "python": "3.12.1",
        "versions": {"ray": "2.55.1", "fedsim-adversarial": "0.1.0", "torch": "2.11.0+cu126", "flwr": "1.41.0",
                     "numpy": "2.2.0", "tenseal": None},
        "auth": "disabled",
        "sight": {
            "code": "0123456789ab",
            "plugins": {"adversary dlg": "fedsim-adversarial 0.1.0", "defense fog": "fog 2.0"},
            "broken": {},
            "weights": ["alex"],
            "weights_folder": "/w",
            "data_folder": "/d",
            "data": ["MNIST"],
            "gpus": None,
            "gpu_fault": None,
        },
        "fault": None,
    }  # fmt: skip


def _found(gpus: float = 0, **changes: Any) -> list[Finding]:
    """What is found at a node that differs so: keys of the answer, of its versions, or of its sight."""
    there: dict[str, Any] = copy.deepcopy(dict(_answer()))
    for key, value in changes.items():
        place = next(part for part in (there, there["versions"], there["sight"]) if key.replace("_", "-") in part
                     or key in part)  # fmt: skip
        place[key if key in place else key.replace("_", "-")] = value
    return [one for one in checkup.compared("n1", gpus, _answer(), there) if one[0] != "ok"]  # type: ignore[arg-type]


def test_an_equal_node_is_well() -> None:
    assert _found() == []
    assert [state for state, _, _ in checkup.compared("n1", 0, _answer(), _answer())] == ["ok"] * 4


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({"ray": "2.54.0"}, "broken", ["ray 2.54.0 (here 2.55.1)", "same wheel"]),
        ({"python": "3.12.2"}, "broken", ["python 3.12.2 (here 3.12.1)"]),
        ({"fedsim_adversarial": "0.2.0"}, "broken", ["fedsim-adversarial 0.2.0"]),
        ({"torch": "2.12.0+cu126"}, "broken", ["torch 2.12.0+cu126"]),
        ({"flwr": None}, "broken", ["flwr is not installed (here 1.41.0)"]),
        ({"torch": "2.11.0+cpu"}, "warn", ["torch 2.11.0+cpu (here 2.11.0+cu126)", "same bits"]),
        ({"numpy": "2.1.0"}, "warn", ["numpy 2.1.0"]),
        ({"code": "ba9876543210"}, "broken", ["source is not the same", "ba9876543210"]),
        ({"plugins": {"adversary dlg": "fedsim-adversarial 0.1.0"}}, "broken", ["defense fog (from fog 2.0)"]),
        (
            {"plugins": {"adversary dlg": "fedsim-adversarial 0.1.0", "defense fog": "fog 1.9"}},
            "broken",
            ["defense fog comes from fog 1.9 there, and from fog 2.0 here"],
        ),
        ({"broken": {"defense fog": "defense 'fog' cannot be imported"}}, "broken", ["cannot be imported"]),
        ({"weights": []}, "absent", ["LPIPS alex", "/w"]),
        ({"data": ["cifar-10-batches-py"]}, "absent", ["MNIST", "/d", "FEDSIM_DATA"]),
    ],
)
def test_a_difference_is_found_and_named(change: dict[str, Any], state: str, words: list[str]) -> None:
    ((found, what, detail),) = _found(**change)
    assert found == state
    assert what.startswith("n1: ")
    assert all(word in detail for word in words), detail


def test_many_broken_plugins_are_counted() -> None:
    mine = _answer()["sight"]
    assert mine is not None
    mine["plugins"] = {f"model {n}": "fedsim-adversarial 0.1.0" for n in range(9)}
    found = checkup._plugins("n1: plugins", mine, {**mine, "broken": dict.fromkeys(mine["plugins"], "no")})
    assert [detail for _, _, detail in found] == ["no", "no", "no", "and 6 more of 9"]
    assert {state for state, _, _ in found} == {"broken"}


def test_a_gpu_that_torch_cannot_use_is_found() -> None:
    ((state, what, detail),) = _found(gpus=2)
    assert (state, what) == ("broken", "n1: GPUs")
    assert "Ray gives out 2" in detail
    there = _answer()
    assert there["sight"] is not None
    there["sight"]["gpus"] = ["NVIDIA H200, 140 GiB"] * 2
    assert "GPUs" not in " ".join(what for _, what, _ in checkup.compared("n1", 2, _answer(), there))
    node = Node("n1", "10.0.0.1", 8, 2)
    assert checkup.resources(node, {"memory": 2**31}, there) == "8 CPUs, 2 GPUs (NVIDIA H200, 140 GiB), 2.0 GiB memory"
    assert checkup.resources(node, {"accelerator_type:A100": 1}, "late") == "8 CPUs, 2 GPUs (A100)"


@pytest.mark.parametrize(
    ("modes", "addresses", "state", "word"),
    [
        (["token", "token"], ["10.0.0.1", "10.0.0.2"], "ok", "private network"),
        (["disabled", "disabled"], ["10.0.0.1", "10.0.0.2"], "warn", "RAY_AUTH_MODE=token"),
        (["token", "disabled"], ["10.0.0.1", "10.0.0.2"], "warn", "some nodes alone"),
        (["disabled", "disabled"], ["10.0.0.1", "10.0.0.1"], "absent", "off"),
    ],
)
def test_an_open_cluster_is_warned_of(modes: list[str], addresses: list[str], state: str, word: str) -> None:
    answers: list[Answer] = [{**_answer(), "auth": mode} for mode in modes]
    nodes = [Node(str(index), address, 1, 0) for index, address in enumerate(addresses)]
    found = checkup.authentication(answers, nodes)
    assert found[:2] == (state, "authentication")
    assert word in found[2]


def test_the_code_of_fedsim_has_a_hash_that_changes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looking.code() == looking.code()
    assert len(looking.code()) == 12

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(looking, "find_spec", lambda name: Spec() if name == "fedsim" else None)
    (tmp_path / "a.py").write_text("x = 1\n")
    first = looking.code()
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "more.py").write_text("\n")
    assert looking.code() == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = looking.code()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, looking.code()}) == 3


def test_torch_is_asked_for_gpus_past_what_ray_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = "import json, os; print(json.dumps([str('CUDA_VISIBLE_DEVICES' in os.environ)]))"
    monkeypatch.setattr(looking, "_ASK", code)
    assert looking._gpus() == (["False"], None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setattr(looking, "_ASK", "raise SystemExit('no driver')")
    assert looking._gpus() == (None, "no driver")
