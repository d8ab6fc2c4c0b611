"""The settings of `ckks`: updates under an additively homomorphic encryption, after Phong et al. (IEEE TIFS 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedsim.errors import InputError
from fedsim.secagg.ideal import shared_problems
from fedsim.settings import Count

if TYPE_CHECKING:
    from fedsim.secagg.base import Terms

Metric = Literal["train_loss", "epsilon"]

MODULUS_BITS = 60
"""Bits of the one prime under which ciphertexts are added; SEAL allows no more in one."""

SPARE_BITS = 30
"""Bits of the further prime that TenSEAL asks of every context. No ciphertext has it, as nothing is multiplied."""

FRESH_VARIANCE = 21 / 2 + 1 / 12
"""Of a coefficient of a fresh ciphertext's error: SEAL's centred binomial of 2 x 21 bits, and the rounding of the
encoded value."""

FLOOD = 1024
"""How much larger than the error of a decrypted sum the noise is that covers it up."""

NUMBERS = ("clients", "examples", "steps")
"""What stands behind the tensors: 1, the weight, and the weight times the steps."""

BASE, DIGITS = 16, 12
"""Each of those numbers goes as digits, one to a slot, so that noise cannot change it."""

LEAST_FRACTIONAL_BITS = 10
"""With fewer bits behind the point, updates would drown in the noise."""

FAR = 10
"""Standard deviations of a Gaussian that no coordinate exceeds: the probability is below 2^-75 for each."""

MISSING = "needs the package tenseal, which is not installed; pip install 'fedsim-adversarial[ckks]'"

TRUST = (
    "any one client together with the server can decrypt every update of the round: all clients have the same key",
    "the server is trusted to ask for the sum alone: a client cannot tell a sum from a ciphertext that was scaled",
    "the server is trusted to pass on public keys unchanged, and to send one model to all: neither is checked",
)


@dataclass(frozen=True)
class CKKS:
    """Every client encrypts its weighted update under one secret key that all clients have and the server has not; the
    server adds the ciphertexts, and one client decrypts the sum.

    Source: Phong, Aono, Hayashi, Wang and Moriai (IEEE TIFS 2018), with CKKS (Cheon et al., ASIACRYPT 2017) as the
    scheme, by TenSEAL. A mode to compare with: it costs far more than `secagg+` and trusts more.

    A decrypted sum in CKKS holds the error of the ciphertext, from which whoever has the ciphertext can compute the
    secret key (Li and Micciancio, EUROCRYPT 2021). So the client that decrypts adds Gaussian noise, `FLOOD` times as
    large, before it answers; that noise is nearly all of the error of a mean.

    poly_modulus_degree: N; a ciphertext has N / 2 slots. The larger, the safer and the slower; all are above 128 bits.
    scale_bits: values are multiplied by 2^this. Errors halve with each bit more, and so does the largest magnitude that
    an entry may have, 2^(58 - scale_bits). most_examples: the most that a client weighs, a public bound; if absent the
    batch size (fedsgd), or the next power of two above the largest client (fedavg). min_survivors: with fewer clients
    left the round is closed; never one. metrics: numbers that leave a client in the clear.
    """

    poly_modulus_degree: Literal[4096, 8192, 16384] = 8192
    scale_bits: Annotated[int, Field(ge=30, le=50)] = 40
    most_examples: Count | None = None
    min_survivors: Annotated[int, Field(ge=2)] = 3
    metrics: tuple[Metric, ...] = ()

    before: ClassVar[tuple[str, ...]] = ("keys", "shares")
    after: ClassVar[tuple[str, ...]] = ("decrypt",)

    def check(self) -> None:
        """Raises InputError where TenSEAL is not installed."""
        from importlib.util import find_spec

        if find_spec("tenseal") is None:
            raise InputError(f"secure aggregation ckks {MISSING}")

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.poly_modulus_degree // 2

    @property
    def largest(self) -> float:
        """The largest magnitude of an entry. Sums of normalised entries are no larger, and fit the modulus twice."""
        return float(2 ** (MODULUS_BITS - 2 - self.scale_bits))

    def noise(self, clients: int) -> float:
        """Standard deviation of the noise on an entry of the decrypted sum of so many clients.

        An entry is the real part of N coefficients, each turned by another angle, so that N / 2 of their variance is
        left in it.
        """
        coefficient = math.sqrt(clients * FRESH_VARIANCE)
        return FLOOD * coefficient * math.sqrt(self.poly_modulus_degree / 2) / 2**self.scale_bits

    def problems(self, clients: int, most_examples: int | None, most_steps: int | None) -> Iterable[tuple[str, str]]:
        """(key, what is wrong with it and what to do) for rounds of so many clients; None: not known yet."""
        yield from shared_problems(self, clients)
        if clients * (BASE - 1) > self.largest:
            yield (
                "scale_bits",
                f"{clients} clients cannot be counted with values up to {self.largest:g}, all that "
                f"{self.scale_bits} bits leave room for; lower scale_bits",
            )
        if self.noise(clients) > 2 ** -(LEAST_FRACTIONAL_BITS + 1):
            yield (
                "scale_bits",
                f"a mean would be off by {self.noise(clients):.1g} and more; raise scale_bits",
            )
        if most_examples is not None and most_examples * (most_steps or 1) >= BASE**DIGITS:
            yield "most_examples", f"a client cannot weigh {most_examples}; lower it"

    def bound_of_one(self, terms: Terms) -> float:
        """By how much a coordinate of one client's update may be off that is taken out of a sum: the errors of the
        whole sum are on it.
        """
        return FAR * self.noise(terms.clients) * terms.clients

    def facts(self, terms: Terms) -> Mapping[str, Any]:
        """What was derived from the settings, for the manifest.

        error_std, error_bound: of a coordinate of the mean, where every client weighs the most that it can; for others
        times clients * most_examples / examples. The bound is exceeded with a probability below 2^-75 a coordinate.
        """
        plain = terms.layout.entries
        entries = plain + len(NUMBERS) * DIGITS
        ciphertexts = -(-entries // self.slots)
        return {
            "poly_modulus_degree": self.poly_modulus_degree,
            "scale_bits": self.scale_bits,
            "modulus_bits": MODULUS_BITS,
            "error_std": self.noise(terms.clients),
            "error_bound": FAR * self.noise(terms.clients),
            "largest": self.largest,
            "most_examples": terms.most_examples,
            "min_survivors": self.min_survivors,
            "entries": entries,
            "ciphertexts": ciphertexts,
            # Two polynomials of N numbers of 8 bytes; the head of a ciphertext is about 150 bytes.
            "bytes_per_update": ciphertexts * (2 * self.poly_modulus_degree * 8 + 150),
            "plain_bytes_per_update": 4 * plain,
            "trust": list(TRUST),
        }
