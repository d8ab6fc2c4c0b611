"""A derivation is found by name and checked before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

from fedsim import plugins


def test_no_derivation_imports_torch_or_numpy() -> None:
    code = (
        "import sys; from fedsim import plugins\n"
        "made = [plugins.load('derivations', name)() for name in plugins.names('derivations')]\n"
        "assert all(one.needs and isinstance(one.gives, frozenset) for one in made)\n"
        "print(len(made), {'torch', 'numpy'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split(maxsplit=1)[1].strip() == "set()"
    assert {"collusion", "differencing", "masked", "prying", "suppression"} <= set(plugins.names("derivations"))
