"""The settings of `secagg+`: Bonawitz et al. (CCS 2017), on the random k-regular graph of Bell et al. (CCS 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsim.secagg.ideal import Ideal, summing_facts, summing_problems
from fedsim.secagg.parameters import Parameters, derive, problems_with
from fedsim.settings import Count, OpenFraction

if TYPE_CHECKING:
    from fedsim.secagg.base import Terms


@dataclass(frozen=True)
class SecAggPlus(Ideal):
    """The whole protocol: keys, encrypted Shamir shares, masked vectors, unmasking.

    Sources: Bonawitz et al. (CCS 2017); Bell et al. (CCS 2020) for the graph and its parameters.

    corrupt, dropout: the largest fractions of a round's clients that work together with the server, and that drop out;
    the number of neighbours and the threshold are derived from them (`fedsim.secagg.parameters`). neighbours,
    threshold: by hand instead; a pair that is not safe is refused. server: `malicious` asks for a threshold above half
    of a client's share holders, so that a server cannot collect a client's self mask from some and its key from others.
    The other settings are those of `ideal`.
    """

    corrupt: OpenFraction = 0.1
    dropout: OpenFraction = 0.3
    neighbours: Count | None = None
    threshold: Count | None = None
    server: Literal["honest_but_curious", "malicious"] = "malicious"

    before: ClassVar[tuple[str, ...]] = ("keys", "shares")
    after: ClassVar[tuple[str, ...]] = ("unmask",)

    def parameters(self, clients: int) -> Parameters:
        """Neighbours, threshold and fewest survivors of a round with so many clients. Raises ValueError for an unsafe
        choice.
        """
        return derive(self, clients)

    def problems(self, clients: int, most_examples: int | None, most_steps: int | None) -> Iterable[tuple[str, str]]:
        """(key, what is wrong with it and what to do) for rounds of so many clients; None: not known yet."""
        found = list(summing_problems(self, clients, most_examples, most_steps))
        return [*found, *(problems_with(self, clients) if not found else ())]

    def facts(self, terms: Terms) -> Mapping[str, Any]:
        """What was derived from the settings, for the manifest."""
        found = self.parameters(terms.clients)
        return {
            **summing_facts(self.codec(terms), found.min_survivors),
            "neighbours": found.neighbours,
            "threshold": found.threshold,
        }
