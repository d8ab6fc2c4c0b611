"""Which clients the sums of several rounds determine: exact linear algebra on who took part when."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

Row = dict[int, Fraction]
"""A linear form of the clients' updates: coefficients by client, none of them 0."""


class Participation:
    """Rounds by the clients that took part, added one by one; exact, in fractions.

    A client is determined when its unit vector is in the row space of the matrix of 0 and 1, rounds by clients. The
    rows are kept in reduced echelon form: there, a determined client is the only entry of its row.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}  # by pivot
        self._clients: set[int] = set()

    @property
    def clients(self) -> list[int]:
        """All that ever took part."""
        return sorted(self._clients)

    def add(self, clients: Collection[int]) -> None:
        """A round more."""
        self._clients.update(clients)
        row = dict.fromkeys(clients, Fraction(1))
        for pivot in [client for client in clients if client in self._rows]:
            _subtract(row, self._rows[pivot], row[pivot])
        if not row:
            return
        pivot = min(row)
        scale = row[pivot]
        row = {client: value / scale for client, value in row.items()}
        for other in self._rows.values():
            if pivot in other:
                _subtract(other, row, other[pivot])
        self._rows[pivot] = row

    def determined(self) -> list[int]:
        """The clients whose updates follow from the sums."""
        return sorted(pivot for pivot, row in self._rows.items() if len(row) == 1)

    def confounded(self, client: int) -> list[int]:
        """The fewest clients found whose updates could change together with this one's without any sum changing.

        Empty for one that is determined.
        """
        free = sorted(self._clients - self._rows.keys())
        found = []
        for column in free:
            support = {column} | {pivot for pivot, row in self._rows.items() if column in row}
            if client in support:
                found.append(sorted(support - {client}))
        return min(found, key=len, default=[])


def together(rounds: Sequence[Collection[int]], clients: Collection[int]) -> list[list[int]]:
    """The groups of two or more of these clients that took part in exactly the same rounds."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for client in sorted(clients):
        groups.setdefault(tuple(client in one for one in rounds), []).append(client)
    return [group for group in groups.values() if len(group) > 1]


def coefficients(rounds: Sequence[Collection[int]], wanted: Sequence[int]) -> Mapping[int, list[float]]:
    """For each of these clients, all determined: the numbers of least norm by which the rounds' sums add up to its own.

    A number below 1e-9 in size is rounding, and 0.
    """
    import numpy as np

    clients = sorted({client for one in rounds for client in one})
    matrix = np.array([[float(client in one) for client in clients] for one in rounds])
    inverse = np.linalg.pinv(matrix)  # (clients, rounds)
    inverse[np.abs(inverse) < 1e-9] = 0
    return {client: inverse[clients.index(client)].tolist() for client in wanted}


def _subtract(row: Row, other: Mapping[int, Fraction], factor: Fraction) -> None:
    """row -= factor * other, in place."""
    for client, value in other.items():
        left = row.get(client, Fraction(0)) - factor * value
        if left:
            row[client] = left
        else:
            row.pop(client, None)
