"""docs/secure-aggregation.md says of sights and parameters what the code says, and names all there is."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsim
from fedsim import plugins
from fedsim.adversaries import exposure, threat
from fedsim.secagg.plus import SecAggPlus

DOCS = Path(fedsim.__file__).parent.parent / "docs" / "secure-aggregation.md"


def table(mark: str) -> list[str]:
    """The lines between a mark and the end of its table."""
    if not DOCS.exists():
        pytest.skip("installed without the documentation")
    _, _, rest = DOCS.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    return rest.partition("\n<!-- end -->")[0].splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_sights_is_the_threat_models() -> None:
    assert table("exposure") == exposure.markdown().splitlines(), (
        "run `python -m fedsim.adversaries.exposure` and paste its output"
    )


def test_a_cell_holds_what_the_vantage_shows_and_nothing_else() -> None:
    head, _, *lines = [cells(line) for line in exposure.markdown().splitlines()]
    assert {mode for _, _, mode in threat.SHOWS} == {name.strip("`") for name in head[1:]}
    for line in lines:
        vantage = line[0].split("`")[1]
        encrypted = [True] if "with TLS" in line[0] else [False] if "without TLS" in line[0] else [False, True]
        for mode, cell in zip(head[1:], line[1:], strict=True):
            said = {item.removesuffix(" of the sum").replace(" ", "_") for item in cell.split(", ")}
            for tls in encrypted:
                assert said == threat.SHOWS[vantage, tls, mode.strip("`")]


def test_under_secure_aggregation_a_server_is_said_to_see_the_update_of_the_sum_alone() -> None:
    server = next(cells(line) for line in exposure.markdown().splitlines() if line.startswith("| `server`"))
    assert "update" in server[1].split(", ")
    for cell in server[2:]:
        assert "update" not in cell.split(", ") and "update of the sum" in cell.split(", ")


def test_the_table_of_parameters_is_what_is_derived() -> None:
    head, _, *lines = [cells(line) for line in table("parameters")]
    assert [name.strip("`") for name in head[3:]] == ["honest_but_curious", "malicious"] and len(lines) > 9
    for clients, corrupt, dropout, *pairs in lines:
        for server, said in zip(("honest_but_curious", "malicious"), pairs, strict=True):
            settings = SecAggPlus(corrupt=float(corrupt), dropout=float(dropout), server=server)  # type: ignore[arg-type]
            found = settings.parameters(int(clients))
            assert said == f"{found.neighbours} / {found.threshold} / {found.min_survivors}", (clients, corrupt, server)


@pytest.mark.parametrize("kind", ["secure_aggregations", "derivations"])
def test_every_mode_and_derivation_is_named(kind: str) -> None:
    text = DOCS.read_text(encoding="utf-8") if DOCS.exists() else pytest.skip("installed without the documentation")
    for name in plugins.names(kind):
        assert f"| `{name}` |" in text
