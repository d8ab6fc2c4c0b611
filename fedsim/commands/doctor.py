"""`fedsim doctor`: what there is on this machine, or on each node of a cluster, and what is missing for what."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

from fedsim import manifest, plugins
from fedsim.errors import InputError


def run(options: argparse.Namespace) -> int:
    """Print a line a finding: ok, or what is missing, what for, and how to get it. 1 if fedsim cannot run."""
    # First, so that a wrong address is said at once.
    cluster = _cluster(options.ray, options.json) if getattr(options, "ray", None) is not None else []
    findings = [*_machine(), *_packages(), *_torch(), *_weights(), *_data(), *_plugins(), *cluster]
    if options.json:
        print(
            json.dumps(
                [{"state": state, "what": what, "detail": detail} for state, what, detail in findings],
                indent=2,
            )
        )
    else:
        width = max(24, *(len(what) for _, what, _ in findings))
        for state, what, detail in findings:
            print(f"  {state:8} {what:{width}} {detail}")
    return 1 if any(state == "broken" for state, _, _ in findings) else 0


Finding = tuple[str, str, str]
"""State (ok, low, warn, absent or broken), what, detail."""


def _cluster(address: str, quiet: bool) -> list[Finding]:
    """What each node of a cluster says. It may take a minute, so what is waited for is told."""
    from fedsim.cluster import checkup

    return checkup.findings(address, lambda text: None if quiet else print(text, file=sys.stderr))


def _machine() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    out = [
        ("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        (
            "ok",
            "processor",
            f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        ),
        ("ok" if free > 1 else "low", "disk", f"{free:.1f} GiB free here"),
    ]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out.append(("ok", "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"))
    return out


def _packages() -> list[Finding]:
    optional = {
        "ray": "needed to run on a Ray cluster: pip install 'fedsim-adversarial[ray]'",
        "tenseal": "needed for secure_aggregation = \"ckks\": pip install 'fedsim-adversarial[ckks]'",
    }
    out: list[Finding] = []
    for name, found in manifest.versions().items():
        if found:
            out.append(("ok", name, found))
        elif name in optional:
            out.append(("absent", name, optional[name]))
        else:
            out.append(("broken", name, f"not installed: pip install {name}"))
    return out


def _torch() -> list[Finding]:
    try:
        import torch
    except Exception as error:
        return [("broken", "torch", f"cannot be imported: {error}")]
    out: list[Finding] = [("ok", "torch threads", str(torch.get_num_threads()))]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            out.append(("ok", f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    else:
        out.append(("absent", "cuda", 'no GPU; device = "auto" uses the processor'))
    return [*out, _compiler()]


def _compiler() -> Finding:
    """What compiled attacks need. Nothing is compiled here."""
    from fedsim.adversaries.inversion.engines import no_compiler

    reason = no_compiler()
    if reason:
        return ("absent", "C++ compiler", f"{reason}; attacks run eagerly, at about half the speed")
    return ("ok", "C++ compiler", "found; long attacks are compiled")


def _weights() -> list[Finding]:
    from fedsim.metrics.lpips import weights_file

    out: list[Finding] = []
    for net in ("squeeze", "alex", "vgg"):
        path = weights_file(net)
        if path.is_file():
            out.append(("ok", f"LPIPS {net}", str(path)))
        else:
            out.append(
                (
                    "absent",
                    f"LPIPS {net}",
                    f"downloaded on first use to {path} (TORCH_HOME moves it); without it LPIPS is 'not available'",
                )
            )
    return out


def _data() -> list[Finding]:
    from fedsim.data.downloaded import data_folder

    root = data_folder(None)
    state = "ok" if root.is_dir() else "absent"
    return [
        ("ok", "embedded data", "mnist5k, digits"),
        (
            state,
            "downloaded data",
            f"{root} (FEDSIM_DATA moves it); cifar10 and others are fetched on first use",
        ),
    ]


def _plugins() -> list[Finding]:
    out: list[Finding] = []
    for kind in plugins.KINDS:
        for name in plugins.names(kind):
            try:
                plugins.load(kind, name)
            except InputError as error:
                out.append(("broken", f"{plugins.singular(kind)} {name}", str(error)))
        out.append(("ok", kind, ", ".join(plugins.names(kind))))
    return out
