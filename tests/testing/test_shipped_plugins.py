"""Every adversary, defense and derivation that ships keeps its contract, with its defaults, and few iterations."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim import plugins
from fedsim.testing import ConformanceError, check_adversary, check_defense, check_derivation

SHORT: dict[str, dict[str, Any]] = {
    "carlini": {"iterations": 2, "decoding_steps": 2},
    "cocktail_party": {"iterations": 2, "feature_iterations": 2},
    "spear": {"samples": 200},
}
"""Settings with which an attack is short. Attacks by optimisation have `iterations`."""

OURS = "fedsim-adversarial"

pytestmark = pytest.mark.filterwarnings("ignore::fedsim.testing.ConformanceWarning")


def shipped(kind: str) -> list[str]:
    return [name for name in plugins.names(kind) if plugins.origin(kind, name).startswith(OURS)]


@pytest.mark.parametrize("name", shipped("adversaries"))
def test_every_shipped_adversary_conforms(name: str) -> None:
    cls = plugins.load("adversaries", name)
    short = SHORT.get(name, {"iterations": 2} if hasattr(cls, "iterations") else {})
    check_adversary(cls, **short)


@pytest.mark.parametrize("name", shipped("defenses"))
def test_every_shipped_defense_conforms(name: str) -> None:
    check_defense(plugins.load("defenses", name))


@pytest.mark.parametrize("name", shipped("derivations"))
def test_every_shipped_derivation_conforms(name: str) -> None:
    check_derivation(plugins.load("derivations", name))


def test_the_process_of_its_own_gives_the_same_bits() -> None:
    check_adversary(plugins.load("adversaries", "phong"), process=True)


def test_settings_decide_what_is_tried() -> None:
    """`huang` without BatchNorm is tried on models without it; with settings that fit nowhere, on nothing."""
    cls = plugins.load("adversaries", "huang")
    check_adversary(cls, batchnorm="none", iterations=1)
    with pytest.raises(ConformanceError, match="objects to all"):
        check_adversary(cls, initial="given", iterations=1)
