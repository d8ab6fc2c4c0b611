"""The lines of `rounds.jsonl`, read with patience."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.report.values import Table, integer, integers, real, table, tables, text

NO_REASON = "no reason recorded"


@dataclass(frozen=True)
class Dropout:
    """A client that sent nothing usable in a round, and why. `round` is None outside a round's line."""

    client: int | None
    reason: str
    round: int | None = None


@dataclass(frozen=True)
class Secure:
    """What is recorded of a round's secure aggregation.

    survivors: how many clients are in the sum; None if none was opened. clipped: how many values were cut off before
    they were summed. unopened: clients whose part arrived, but that did not help to open the sum, or refused to.
    cut_off: of a round that closed, those that had replied when it did.
    """

    mode: str = ""
    survivors: int | None = None
    clipped: int | None = None
    unopened: tuple[Dropout, ...] = ()
    cut_off: tuple[int, ...] = ()

    def clipped_share(self, entries: int | None) -> float | None:
        """Of all values in the sum, the share that was cut off; entries: a client's. None if that is not known."""
        if self.clipped is None or not self.survivors or self.survivors < 0 or not entries or entries < 0:
            return None
        return min(max(self.clipped, 0) / (self.survivors * entries), 1.0)


@dataclass(frozen=True)
class Round:
    """One line of `rounds.jsonl`. Round 0 is the model before any training.

    epsilon: the most that private training has cost a client so far; with a delta but no epsilon, it has no bound.
    skipped: why the model stayed as it was, if it did. secure: None where the updates were not summed securely.
    """

    round: int
    clients: tuple[int, ...] = ()
    dropouts: tuple[Dropout, ...] = ()
    train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    seconds: float | None = None
    skipped: str = ""
    secure: Secure | None = None

    @property
    def closed(self) -> bool:
        """Whether a secure aggregation ended without a sum."""
        return self.secure is not None and self.secure.survivors is None


def round_of(line: Table) -> Round | None:
    """A line of `rounds.jsonl`; None if it does not even say which round it is."""
    number = integer(line.get("round"))
    if number is None:
        return None
    return Round(
        round=number,
        clients=integers(line.get("clients")),
        dropouts=tuple(
            Dropout(integer(entry.get("client")), text(entry.get("reason")) or NO_REASON, number)
            for entry in tables(line.get("dropouts"))
        ),
        train_loss=real(line.get("train_loss")),
        test_loss=real(line.get("test_loss")),
        test_accuracy=real(line.get("test_accuracy")),
        epsilon=real(line.get("epsilon")),
        delta=real(line.get("delta")),
        seconds=real(line.get("seconds")),
        skipped=text(line.get("skipped")),
        secure=_secure_of(table(line.get("secure")), number),
    )


def _secure_of(entry: Table, number: int) -> Secure | None:
    if not entry:
        return None
    # Runs of before say `late`.
    unopened = [
        Dropout(int(client) if client.isascii() and client.isdigit() else None, text(reason) or NO_REASON, number)
        for client, reason in (table(entry.get("unopened")) or table(entry.get("late"))).items()
        if len(client) < 10
    ]
    return Secure(
        mode=text(entry.get("mode")),
        survivors=integer(entry.get("survivors")),
        clipped=integer(entry.get("clipped")),
        unopened=tuple(unopened),
        cut_off=integers(entry.get("cut_off")),
    )
