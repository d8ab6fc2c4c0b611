"""A derivation that could do nothing in an experiment is refused before round 0."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedsim.adversaries import threat
from fedsim.errors import InputError
from fedsim.experiment_file import as_table, from_table

SERVER: dict[str, Any] = {"name": "geiping", "vantage": "server", "targets": [0], "rounds": [1], "knows": ["labels"]}
LINK = {**SERVER, "vantage": "link"}
SUPPRESSION = {**SERVER, "derive": "suppression", "powers": ["alter_model"]}
PRYING = {**SERVER, "derive": "prying", "powers": ["alter_requests"]}


def read(small: Any, mode: str, adversary: dict[str, Any]) -> None:
    table = as_table(small(server={"secure_aggregation": mode}))
    from_table({**table, "adversaries": [adversary]}, rules=(threat.check,))


@pytest.mark.parametrize(
    ("mode", "adversary", "words"),
    [
        ("off", {**SERVER, "derive": "differencing"}, "every update is shown by itself; leave derive out"),
        ("off", SUPPRESSION, "every update is shown by itself; leave derive out"),
        ("ideal", PRYING, "no client is asked for shares; use 'secagg+'"),
        ("ckks", PRYING, "no client is asked for shares; use 'secagg+'"),
        ("ckks", {**LINK, "derive": "masked"}, "no masked vector; use 'secagg+'"),
        ("ideal", {**SUPPRESSION, "targets": [0, 1]}, "it singles out one client, but has 2 targets; give one"),
        ("secagg+", {**LINK, "derive": "collusion"}, "does not show; it is seen from: server (of the sum of all"),
        ("off", {**SERVER, "powers": ["alter_requests"]}, "is about secure aggregation, and there is none"),
    ],
)
def test_what_could_do_nothing_is_refused(small: Any, mode: str, adversary: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        read(small, mode, adversary)


@pytest.mark.parametrize(
    ("mode", "adversary"),
    [
        ("off", {**SUPPRESSION, "targets": [0, 1, 2, 3], "aggregate": True}),
        ("ideal", SUPPRESSION),
        ("ckks", {**SERVER, "derive": "differencing"}),
        ("secagg+", {**SERVER, "derive": "collusion", "colluders": [1, 2, 3]}),
        ("secagg+", PRYING),
        ("secagg+", {**LINK, "derive": "masked"}),
    ],
)
def test_what_has_something_to_work_on_is_not(small: Any, mode: str, adversary: dict[str, Any]) -> None:
    read(small, mode, adversary)
