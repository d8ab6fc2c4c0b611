"""Whether the plugins keep fedsim's contracts. Run it with `pytest`, after `pip install .` and `pip install pytest`."""

from __future__ import annotations

from fedsim_example import Gray, SignOnly

from fedsim.testing import check_adversary, check_defense


def test_gray_is_an_adversary() -> None:
    check_adversary(Gray)
    check_adversary(Gray, level=0.25, process=True)


def test_sign_only_is_a_defense() -> None:
    check_defense(SignOnly)
