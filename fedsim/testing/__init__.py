"""A conformance kit: whether a plugin keeps its contract, to be run in the plugin's own tests.

    from fedsim.testing import check_adversary, check_defense

    def test_gray_is_an_adversary() -> None:
        check_adversary(Gray, level=0.25)

    def test_sign_only_is_a_defense() -> None:
        check_defense(SignOnly)

Each check makes the plugin with these settings, tries it in tiny made-up federations, and returns None; or it raises
ConformanceError, an AssertionError, which lists every point at once: the place, the reason and the remedy, and the rule
in brackets. A rule is a function of that name in this package, so that what conformance means can be read there:
`classes` (of every plugin), `calls` (of every method), `threat_words`, `adversary`, `attacks`, `derivation`, `defense`
and `defending`.

Each module knows attackers or clients, never both.
"""

from fedsim.testing.adversary import check_adversary
from fedsim.testing.defense import check_defense
from fedsim.testing.derivation import check_derivation
from fedsim.testing.findings import ConformanceError, ConformanceWarning, Finding
from fedsim.testing.observations import stored

__all__ = [
    "ConformanceError",
    "ConformanceWarning",
    "Finding",
    "check_adversary",
    "check_defense",
    "check_derivation",
    "stored",
]
