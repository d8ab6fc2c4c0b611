"""Who masks with whom, and holds shares of whose secrets: all with all, or a random graph of equal degrees."""

from __future__ import annotations

import secrets
from collections.abc import Sequence


def neighbours(clients: Sequence[int], degree: int) -> dict[int, tuple[int, ...]]:
    """{client: its neighbours, sorted}; being a neighbour is mutual, and nobody is its own.

    With a degree of clients - 1 or more, everybody. Otherwise a Harary graph in a random order (Bell et al., CCS 2020,
    section 3): the clients on a ring, each joined with the degree / 2 next on either side, and, if the degree is odd,
    with the one across. The order comes from the operating system.

    Raises ValueError for a client twice, a degree below 1, and an odd one of an odd number of clients.
    """
    count = len(clients)
    if len(set(clients)) != count:
        raise ValueError("a client takes part twice in one round")
    if degree < 1:
        raise ValueError(f"every client needs a neighbour, so the degree is not {degree}")
    if degree >= count - 1:
        return {client: tuple(sorted(other for other in clients if other != client)) for client in clients}
    if degree % 2 and count % 2:
        raise ValueError(f"{count} clients cannot have {degree} neighbours each: both are odd")
    ring = list(clients)
    secrets.SystemRandom().shuffle(ring)
    steps = [step for near in range(1, degree // 2 + 1) for step in (near, -near)] + [count // 2] * (degree % 2)
    found = {client: tuple(sorted(ring[(place + step) % count] for step in steps)) for place, client in enumerate(ring)}
    return {client: found[client] for client in clients}
