"""A small picture of the threat model: clients, their links, the server, and the place where the adversary stands."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fedsim.report.formats import numbered
from fedsim.report.svg import label, line, picture, tag

WIDTH, ROW = 430.0, 42.0
CLIENT_RIGHT, SERVER_LEFT = 114.0, 312.0
SUM = 272.0
MOST_CLIENTS = 4


def threat(
    vantage: str,
    *,
    targets: Sequence[int],
    clients: Sequence[int],
    member: int | None = None,
    colluders: Sequence[int] = (),
    active: bool = False,
    tls: bool = False,
    sent: str = "update",
    summed: bool = False,
) -> Markup:
    """The drawing for one adversary.

    Args:
        vantage: link, server or client; at any other word the adversary is left out.
        targets: the clients it attacks.
        clients: all of them; a few are drawn, those that matter first.
        member: which client the adversary is, at the vantage client.
        colluders: the clients that work together with it. active: whether it may alter something.
        tls: whether the links are encrypted. sent: what a client sends, in words.
        summed: whether it is shown the updates' sum alone.
    """
    # Room for both, where there are many of each.
    first = list(targets)[: MOST_CLIENTS - min(len(colluders), 2)]
    chosen = [client for client in (member, *first, *colluders, *targets, *clients) if client is not None]
    drawn = sorted(list(dict.fromkeys(chosen))[:MOST_CLIENTS]) or [0]
    hidden = len(set(clients) - set(drawn))
    height = 26 + ROW * len(drawn) + (22 if hidden or colluders else 4)
    middle = 26 + ROW * len(drawn) / 2
    malicious = active and vantage == "server"
    parts: list[Markup] = []
    spots: list[tuple[float, float]] = []
    for index, client in enumerate(drawn):
        y = 26 + ROW * (index + 0.5)
        aimed = client in targets
        ends = (CLIENT_RIGHT, y), (SERVER_LEFT, middle + (index - (len(drawn) - 1) / 2) * 14)
        if summed and (aimed or sent != "update"):
            ends = ends[0], (SUM, middle)
        parts.append(line(*ends[0], *ends[1], "link aimed" if aimed else "link"))
        helps = client in colluders
        if helps and vantage == "server":  # tells the adversary what it sends, past the sum
            bend = (CLIENT_RIGHT + SERVER_LEFT) / 2
            path = f"M{CLIENT_RIGHT:.1f} {y + 8:.1f}Q{bend:.1f} {y + 26:.1f} {SERVER_LEFT:.1f} {middle + 22:.1f}"
            parts.append(tag("path", d=path, class_="told"))
        style = f"box{' aimed' if aimed else ''}{' colluder' if helps else ''}"
        parts.append(tag("rect", x=8, y=y - 16, width=CLIENT_RIGHT - 8, height=32, rx=6, class_=style))
        parts.append(label((8 + CLIENT_RIGHT) / 2, y + 4.5, f"client {client}", "node", "middle"))
        if vantage == "client" and (client == member or (member is None and not aimed)) and not spots:
            spots.append((CLIENT_RIGHT, y))
        if vantage == "link" and aimed:
            share = 0.5
            spots.append(tuple(a + share * (b - a) for a, b in zip(*ends, strict=True)))  # type: ignore[arg-type]
    if hidden:
        parts.append(label((8 + CLIENT_RIGHT) / 2, height - 6, f"and {hidden} more", "tick", "middle"))
    if colluders:
        parts.append(label(CLIENT_RIGHT + 8, height - 6, "dashed: work together with it", "tick"))
    parts.append(
        tag("rect", x=SERVER_LEFT, y=middle - 34, width=WIDTH - SERVER_LEFT - 4, height=68, rx=8, class_="box")
    )
    parts.append(
        label((SERVER_LEFT + WIDTH - 4) / 2, middle + (-4 if vantage == "server" else 5), "server", "node", "middle")
    )
    if malicious:
        parts.append(label((SERVER_LEFT + WIDTH - 4) / 2, middle - 19, "malicious", "tick", "middle"))
    encrypted = " (TLS)" if tls else ""
    parts.append(label(CLIENT_RIGHT + 8, 14, f"{sent} →", "tick"))
    parts.append(label(SERVER_LEFT - 8, 14, f"← model{encrypted}", "tick", "end"))
    if vantage == "server":
        spots.append(((SERVER_LEFT + WIDTH - 4) / 2, middle + 16))
    if summed:  # where the updates meet, before the server
        parts.append(line(SUM, middle, SERVER_LEFT, middle, "link aimed"))
        parts.append(tag("circle", cx=SUM, cy=middle, r=11, class_="sum"))
        parts.append(label(SUM, middle + 5, "Σ", "node", "middle"))
    parts += [_eye(x, y, active) for x, y in spots]
    words = {
        "link": "on the link of the attacked client",
        "server": f"at the {'malicious ' if malicious else ''}server",
        "client": "at a client",
    }.get(vantage, "at an unknown place")
    helped = f", together with {numbered(list(colluders), 'client')}" if colluders else ""
    return picture(
        WIDTH,
        height,
        f"Clients on the left, the server on the right; the adversary stands {words}"
        f"{helped}{' and is shown a sum of updates' if summed else ''}.",
        *parts,
    )


def _eye(x: float, y: float, active: bool) -> Markup:
    """The adversary: an eye on a disc; with a ring of dashes if it may alter what passes."""
    parts = [
        tag("circle", cx=x, cy=y, r=14, class_="eye-disc"),
        tag("path", d=f"M{x - 9:.1f} {y:.1f}q9 -10 18 0q-9 10 -18 0z", class_="eye-lid"),
        tag("circle", cx=x, cy=y, r=2.8, class_="eye-pupil"),
    ]
    if active:
        parts.append(tag("circle", cx=x, cy=y, r=17.5, class_="eye-ring"))
    return tag("g", tag("title", "the adversary"), *parts)
