"""An experiment file is checked against these settings before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "fedsim.models.catalog",
    "fedsim.data.embedded",
    "fedsim.data.downloaded",
    "fedsim.data.files",
    "fedsim.data.partitions",
)
HEAVY = ("torch", "torchvision", "datasets", "flwr_datasets", "pandas", "sklearn", "mlxtend", "numpy", "PIL")


def test_settings_import_nothing_heavy() -> None:
    code = (
        f"import sys, {', '.join(MODULES)}\n"
        "from fedsim.errors import InputError\n"
        "for wrong in (fedsim.data.files.Npz('nowhere.npz'), fedsim.data.files.ImageFolder('nowhere')):\n"
        "    try: wrong.check()\n"
        "    except InputError: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
