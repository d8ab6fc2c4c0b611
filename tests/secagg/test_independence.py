"""What a server learns beside the sum: nothing. Checks of the masks, and proof that each would notice a broken one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray
from scipy.stats import chi2
from secagg.driving import MODEL, Round, outcome, terms_for, vector_of

import fedsim.clients.masking_stages
import fedsim.secagg.pairing
import fedsim.server.unmasking
from fedsim.clients.masking import PairwiseMasking
from fedsim.errors import ProtocolError
from fedsim.secagg import shamir
from fedsim.secagg.base import Contribution, Layout, Terms
from fedsim.secagg.keys import Context
from fedsim.secagg.messages import OPENED_KEY, OPENED_SELF
from fedsim.secagg.pairing import add_pair_mask
from fedsim.secagg.plus import SecAggPlus

LAYOUT = Layout({"weight": (1 << 15,)})
RARE = 1e-10
"""How improbable a statistic must be to fail: some hundred are drawn, from the operating system's randomness."""


def flat(value: float) -> Contribution:
    return Contribution({"weight": torch.full((1 << 15,), value)}, {}, 4, 1)


def large(contributions: dict[int, Contribution], **more: object) -> Round:
    bits = more.pop("bits", 32)
    settings = SecAggPlus(bits=bits)  # type: ignore[arg-type]
    return Round(settings, contributions, terms_for(contributions, LAYOUT), **more)  # type: ignore[arg-type]


# --- the checks -----------------------------------------------------------------------------------------------------


def check_uniform(vector: NDArray) -> None:
    """Each byte of the words is uniform, by a chi-square test with 255 degrees of freedom."""
    columns = np.ascontiguousarray(vector).view(np.uint8).reshape(len(vector), -1)
    for place in range(columns.shape[1]):
        counts = np.bincount(columns[:, place], minlength=256)
        mean = len(vector) / 256
        statistic = float(((counts - mean) ** 2 / mean).sum())
        assert chi2.sf(statistic, 255) > RARE, f"byte {place}: chi-square {statistic:.0f}"


def check_unrelated(first: NDArray, second: NDArray) -> None:
    """No correlation, and differences that are uniform, as those of two masks are."""
    correlation = np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1]
    assert abs(correlation) * len(first) ** 0.5 < 6.5
    check_uniform(first - second)


def check_masked_vectors_tell_nothing(bits: int = 32) -> None:
    """Zeros, constants, and the same vector of two clients and in two rounds."""
    for value in (0.0, 1.5):
        contributions = {client: flat(value) for client in range(4)}
        rounds = [large(contributions, round=number, bits=bits) for number in (1, 2)]
        for one in rounds:
            one.run()
        vectors = [vector_of(one.sealed[client]) for one in rounds for client in contributions]
        for vector in vectors:
            check_uniform(vector)
        check_unrelated(vectors[0], vectors[1])
        check_unrelated(vectors[0], vectors[4])


def check_a_late_vector_stays_hidden() -> None:
    """A client is given up, and the others open its key; then its vector arrives after all. (This is what the self mask
    is for: Bonawitz et al., CCS 2017.)
    """
    late: dict[int, NDArray] = {}

    def held_up(client: int, sealed: RecordDict) -> RecordDict:
        if client == 2:
            late[client] = vector_of(sealed).view(np.uint32).copy()
            raise ProtocolError("late")
        return sealed

    contributions = {client: flat(0.25 * client) for client in range(5)}
    round_ = large(contributions, on_sealed=held_up)
    assert round_.run().clients == (0, 1, 3, 4)
    settings, terms = round_.settings, round_.terms
    assert isinstance(terms, Terms)

    replies = {(stage, client): reply for stage, client, _, reply in round_.sent}
    shares = {client: replies["unmask", client][f"{OPENED_KEY}2"] for client in (0, 1, 3, 4)}
    private = shamir.Reconstructor(settings.parameters(5).threshold).combine(shares)  # type: ignore[arg-type]
    masks = np.zeros_like(late[2])
    for other in (0, 1, 3, 4):
        public = replies["keys", other]["keys/mask"]
        context = Context(terms.run, round_.round, tuple(range(5)))
        add_pair_mask(masks, private, public, 2, other, context, MODEL)  # type: ignore[arg-type]
    bare = late[2] - masks
    assert (bare == settings.codec(terms).encode(contributions[2])).mean() < 0.01
    check_uniform(bare)


def check_one_share_of_each(masking: type = PairwiseMasking) -> None:
    """All that was opened in a round with drops never holds both a share of a client's seed and one of its key."""
    contributions = {client: flat(0.5) for client in range(6)}
    round_ = large(contributions, masking=masking, drops={"train": {1}})
    round_.run()
    opened = [reply for stage, _, _, reply in round_.sent if stage == "unmask"]
    assert len(opened) == 5
    for client in contributions:
        of_seed = sum(f"{OPENED_SELF}{client}" in reply for reply in opened)
        of_key = sum(f"{OPENED_KEY}{client}" in reply for reply in opened)
        assert (of_seed, of_key) == ((0, 5) if client == 1 else (5, 0))


# --- the protocol passes them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_masked_vectors_tell_nothing(bits: int) -> None:
    check_masked_vectors_tell_nothing(bits)


def test_a_late_vector_stays_hidden() -> None:
    check_a_late_vector_stays_hidden()


def test_one_share_of_each() -> None:
    check_one_share_of_each()


# --- and broken ones do not -----------------------------------------------------------------------------------------


def still_exact(**more: object) -> bool:
    """That the sum is right: it does not show that nothing is hidden."""
    return outcome(large({client: flat(0.5) for client in range(4)}, **more)) == "exact"


def test_a_generator_of_zeros_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedsim.secagg.pairing, "add_mask", lambda vector, seed, sign: None)
    assert still_exact()
    with pytest.raises(AssertionError, match="chi-square"):
        check_masked_vectors_tell_nothing()


def test_a_generator_that_forgets_its_seed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fedsim.secagg.pairing.add_mask
    monkeypatch.setattr(fedsim.secagg.pairing, "add_mask", lambda vector, seed, sign: original(vector, bytes(32), sign))
    assert still_exact()
    with pytest.raises(AssertionError):
        check_masked_vectors_tell_nothing()


def test_a_missing_self_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fedsim.clients.masking_stages, fedsim.server.unmasking):
        monkeypatch.setattr(module, "add_self_mask", lambda *_: None)
    assert still_exact()
    check_masked_vectors_tell_nothing()
    with pytest.raises(AssertionError):
        check_a_late_vector_stays_hidden()


def test_a_client_that_gives_both_shares_away_is_noticed() -> None:
    class Generous(PairwiseMasking):
        def answer(self, stage: str, query: ConfigRecord) -> ConfigRecord:
            held = dict(self.memory)
            reply = super().answer(stage, query)
            if stage == "unmask":
                for client, seed, key in zip(held["sharers"], held["of_seeds"], held["of_keys"], strict=True):  # type: ignore[arg-type]
                    reply[f"{OPENED_SELF}{client}"], reply[f"{OPENED_KEY}{client}"] = seed, key
            return reply

    assert still_exact(masking=Generous)
    with pytest.raises(AssertionError):
        check_one_share_of_each(Generous)
