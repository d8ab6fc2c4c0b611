"""`fedsim doctor --ray ADDRESS`: whether every node of a cluster can do what this machine would ask of it.

One question goes to each node, and nothing stays there: its answer is compared with what is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, TypedDict

from fedsim import manifest
from fedsim.cluster.connecting import Cluster, Node, Say, connected, ray_module
from fedsim.cluster.looking import Sight, look

Finding = tuple[str, str, str]
"""State (ok, warn, absent or broken), what, detail."""

PATIENCE = 120.0
"""Seconds for all answers. A node imports fedsim and torch for its own, and starts a process before."""

OURS = "fedsim-adversarial"
CRUCIAL = ("ray", OURS, "torch", "flwr")
"""Where these differ, a node computes something else, or nothing."""

SHOWN = 3
"""Plugins that a node cannot import, before the rest is counted."""

PACKAGES = (OURS, *manifest.PACKAGES)


class Answer(TypedDict):
    """What a node says. versions: of the packages, None for one that is not there. auth: its RAY_AUTH_MODE. sight: None
    where fedsim cannot look around there, for the reason that `fault` tells."""

    python: str
    versions: dict[str, str | None]
    auth: str
    sight: Sight | None
    fault: str | None


def findings(address: str, say: Say = lambda text: None, patience: float = PATIENCE) -> list[Finding]:
    """Join the cluster, ask all nodes at once, and compare. Raises InputError where there is no such cluster."""
    with connected(address, say) as cluster:
        nodes = cluster.nodes
        names = named(nodes)
        machines = {one["NodeID"]: one["Resources"] for one in ray_module().nodes() if one["Alive"]}
        say(f"asking {', '.join(names.values())}")
        asked = _asked(nodes)
        here = _here()
        answers = _answers(asked, patience)
        out = [_cluster(cluster), authentication([one for one in answers.values() if not isinstance(one, str)], nodes)]
        for node in nodes:
            answer = answers[node.id]
            out.append(("ok", names[node.id], resources(node, machines.get(node.id, {}), answer)))
            if isinstance(answer, str):
                out.append(("broken", names[node.id], answer))
            else:
                out.extend(compared(names[node.id], node.gpus, here, answer))
    return out


def named(nodes: Iterable[Node]) -> dict[str, str]:
    """What to call each node: its address, and the beginning of Ray's id where several share one."""
    nodes = list(nodes)
    addresses = [node.address for node in nodes]
    return {
        node.id: node.address if addresses.count(node.address) == 1 else f"{node.address} ({node.id[:6]})"
        for node in nodes
    }


def _cluster(cluster: Cluster) -> Finding:
    dead = sum(not one["Alive"] for one in ray_module().nodes())
    lost = f"; {dead} more left it or died" if dead else ""
    return ("ok", "cluster", f"{cluster.words()} at {cluster.address}{lost}")


def _errand() -> Callable[[tuple[str, ...], bool], Answer]:
    """What a node is asked. A function within a function travels as code, so that a node without fedsim answers too."""

    def errand(packages: tuple[str, ...], gpus: bool) -> Answer:
        import importlib.metadata
        import os
        import platform

        versions: dict[str, str | None] = {}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        sight, fault = None, None
        try:
            from fedsim.cluster.looking import look

            sight = look(gpus)
        except (Exception, SystemExit) as error:  # whatever it is, it is what we want to know
            fault = f"{type(error).__name__}: {error}"
        return {
            "python": platform.python_version(),
            "versions": versions,
            "auth": os.environ.get("RAY_AUTH_MODE", "disabled"),
            "sight": sight,
            "fault": fault,
        }

    return errand


def _asked(nodes: Iterable[Node]) -> dict[Any, str]:
    """Set off for all nodes; the node's id by what its answer will come out of."""
    ray = ray_module()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0, name="fedsim doctor")(_errand())
    return {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            PACKAGES, node.gpus > 0
        ): node.id
        for node in nodes
    }


def _answers(asked: dict[Any, str], patience: float) -> dict[str, Answer | str]:
    """By the node's id: its answer, or why there is none. What does not answer in time is told to stop."""
    ray = ray_module()
    _, late = ray.wait(list(asked), num_returns=len(asked), timeout=patience)
    out: dict[str, Answer | str] = {}
    for ref, node in asked.items():
        if ref in late:
            ray.cancel(ref, force=True)
            out[node] = f"does not answer within {patience:g} s; is it overloaded, or cut off from the other nodes?"
            continue
        try:
            out[node] = ray.get(ref)
        except (ray.exceptions.RayError, ConnectionError) as error:
            out[node] = f"cannot be asked: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return out


def _here() -> Answer:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"python": python_version(), "versions": versions, "auth": "", "sight": look(), "fault": None}


# --- what is made of the answers -----------------------------------------------------------------------------------


def authentication(answers: Iterable[Answer], nodes: Iterable[Node]) -> Finding:
    """Whether the cluster asks who is there. Whoever reaches one that does not can run anything on it."""
    modes = {answer["auth"] for answer in answers}
    what = "authentication"
    if modes == {"token"}:
        return ("ok", what, "by token; what is sent is not encrypted, so a private network is still needed")
    remedy = "start Ray with RAY_AUTH_MODE=token on every node (docs/cluster.md)"
    if "token" in modes:
        return ("warn", what, f"by token on some nodes alone; {remedy}")
    if len({node.address for node in nodes}) == 1:
        return ("absent", what, f"off; whoever reaches this machine's Ray ports can run code on it; {remedy}")
    return ("warn", what, f"off: whoever reaches a node's Ray ports can run code on all of them; {remedy}")


def resources(node: Node, has: dict[str, float], answer: Answer | str) -> str:
    """`8 CPUs, 1 GPU (NVIDIA H200, 140 GiB), 31.2 GiB memory, 9.4 GiB object store`."""
    parts = [f"{node.cpus:g} CPU{'' if node.cpus == 1 else 's'}"]
    if node.gpus:
        sight = None if isinstance(answer, str) else answer["sight"]
        seen = sorted(set(sight["gpus"] or ())) if sight else []
        kinds = seen or [one.removeprefix("accelerator_type:") for one in has if one.startswith("accelerator_type:")]
        told = f" ({'; '.join(kinds)})" if kinds else ""
        parts.append(f"{node.gpus:g} GPU{'' if node.gpus == 1 else 's'}{told}")
    for key, word in (("memory", "memory"), ("object_store_memory", "object store")):
        if key in has:
            parts.append(f"{has[key] / 2**30:.1f} GiB {word}")
    return ", ".join(parts)


def compared(name: str, gpus: float, here: Answer, there: Answer) -> list[Finding]:
    """What a node's answer says beside this machine's. gpus: how many Ray may give out there."""
    out = _versions(f"{name}: versions", here, there)
    if there["sight"] is None:
        return [*out, ("broken", f"{name}: fedsim", f"cannot look around there: {there['fault']}; {_INSTALL}")]
    assert here["sight"] is not None
    mine, its = here["sight"], there["sight"]
    if mine["code"] != its["code"]:
        detail = f"its source is not the same as here ({its['code']}, here {mine['code']}); {_INSTALL}"
        out.append(("broken", f"{name}: fedsim", detail))
    return [
        *out,
        *_plugins(f"{name}: plugins", mine, its),
        *_gpus(f"{name}: GPUs", gpus, its),
        _weights(f"{name}: weights", mine, its),
        _data(f"{name}: data", mine, its),
    ]


_INSTALL = "install the same wheel, with the ray extra, on every node, and restart Ray there"


def _versions(what: str, here: Answer, there: Answer) -> list[Finding]:
    mine, its = {"python": here["python"], **here["versions"]}, {"python": there["python"], **there["versions"]}
    # torch's 2.11.0+cpu and 2.11.0+cu126 are one version, built twice.
    graver: list[str] = []
    lighter: list[str] = []
    for key in mine:
        if mine[key] == its[key]:
            continue
        words = f"{key} {its[key] or 'is not installed'} (here {mine[key] or 'none'})"
        crucial = key in ("python", *CRUCIAL) and _public(mine[key]) != _public(its[key])
        (graver if crucial else lighter).append(words)
    out: list[Finding] = []
    if graver:
        out.append(("broken", what, f"{', '.join(graver)}; {_INSTALL}"))
    if lighter:
        out.append(("warn", what, f"{', '.join(lighter)}: results need not have the same bits"))
    same = ", ".join(f"{key} {its[key]}" for key in ("python", *CRUCIAL))
    return out or [("ok", what, f"as here: {same}")]


def _public(name: str | None) -> str | None:
    return name.partition("+")[0] if name else name


def _plugins(what: str, mine: Sight, its: Sight) -> list[Finding]:
    out: list[Finding] = []
    for word, origin in mine["plugins"].items():
        found = its["plugins"].get(word)
        if found is None:
            out.append(("broken", what, f"{word} (from {origin}) is not installed there"))
        elif found != origin:
            out.append(("broken", what, f"{word} comes from {found} there, and from {origin} here"))
        elif word in its["broken"]:
            out.append(("broken", what, its["broken"][word]))
    if len(out) > SHOWN:  # one cause, most likely
        out[SHOWN:] = [("broken", what, f"and {len(out) - SHOWN} more of {len(mine['plugins'])}")]
    return out or [("ok", what, f"all {len(mine['plugins'])} of here can be imported")]


def _gpus(what: str, gpus: float, its: Sight) -> list[Finding]:
    if not gpus or its["gpus"]:
        return []
    reason = its["gpu_fault"] or "torch there finds none; is it a build without CUDA, or is the driver too old?"
    return [("broken", what, f"Ray gives out {gpus:g}, but {reason}")]


def _weights(what: str, mine: Sight, its: Sight) -> Finding:
    lacks = [net for net in mine["weights"] if net not in its["weights"]]
    if lacks:
        return ("absent", what, f"LPIPS {', '.join(lacks)}: not in {its['weights_folder']} (TORCH_HOME moves it)")
    return ("ok", what, f"LPIPS {', '.join(its['weights']) or 'none, as here'}")


def _data(what: str, mine: Sight, its: Sight) -> Finding:
    lacks = [one for one in mine["data"] if one not in its["data"]]
    if lacks:
        remedy = "copy it there, share a folder, or set FEDSIM_DATA where Ray is started"
        return ("absent", what, f"{', '.join(lacks)}: not in {its['data_folder']}; {remedy}")
    return ("ok", what, f"{its['data_folder']}: {', '.join(its['data']) or 'nothing downloaded, as here'}")
