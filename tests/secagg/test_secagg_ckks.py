"""The settings of `ckks`, and why a decrypted sum must be covered with noise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import InputError
from fedsim.secagg.base import Layout, Terms
from fedsim.secagg.ckks import CKKS

LAYOUT = Layout({"weight": (62000,)})


def test_a_missing_package_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.secagg.ciphertexts import fresh_key

    monkeypatch.setitem(sys.modules, "tenseal", None)
    for refused in (CKKS().check, lambda: fresh_key(CKKS())):
        with pytest.raises(InputError, match=r"needs the package tenseal.*pip install .fedsim-adversarial\[ckks\]"):
            refused()


def test_settings_that_do_not_do_are_named() -> None:
    assert not list(CKKS().problems(10, 64, 1))
    assert not list(CKKS().problems(10, None, None))
    for settings, clients, most_examples, key, word in (
        (CKKS(), 2, 64, "min_survivors", "only 2 take part"),
        (CKKS(metrics=("epsilon", "epsilon")), 5, 64, "metrics", "twice"),
        (CKKS(scale_bits=50), 20, 64, "scale_bits", "lower scale_bits"),
        (CKKS(scale_bits=30), 10, 64, "scale_bits", "raise scale_bits"),
        (CKKS(), 10, 10**15, "most_examples", "lower it"),
    ):
        ((found, problem),) = settings.problems(clients, most_examples, 1)
        assert found == key
        assert word in problem


def test_facts_are_data_for_json_and_say_whom_to_trust() -> None:
    import json

    facts = CKKS().facts(Terms(0, 10, 64, 1, LAYOUT))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["ciphertexts"] == 16
    assert 7.9 < facts["bytes_per_update"] / facts["plain_bytes_per_update"] < 8.6
    assert "decrypt every update" in facts["trust"][0]


def test_facts_tell_how_long_an_update_is() -> None:
    pytest.importorskip("tenseal")
    from fedsim.secagg.ciphertexts import SecretContext, fresh_key

    settings = CKKS(poly_modulus_degree=4096)
    facts = settings.facts(Terms(0, 10, 64, 1, LAYOUT))
    sealed = SecretContext(settings, fresh_key(settings)).encrypt(np.ones(facts["entries"]))
    assert len(sealed) == pytest.approx(facts["bytes_per_update"], rel=0.01)


def test_a_bare_decryption_gives_away_the_secret_key_and_a_covered_one_does_not(tmp_path: Path) -> None:
    """After Li and Micciancio (EUROCRYPT 2021), with what the server of a round has: two ciphertexts of a sum, and the
    numbers in them.

    TenSEAL tells the real part of a decryption, which is half of m(X) + m(1/X); an encrypted m is c0 + c1 s. So
    c1(x) s(x) + c1(1/x) s(1/x) is known at every root x, and two ciphertexts give s(x). A third one shows that s is
    right.
    """
    pytest.importorskip("tenseal")
    from tenseal import ckks_vector, sealapi

    from fedsim.secagg.ciphertexts import SecretContext, covered, fresh_key

    settings = CKKS(poly_modulus_degree=4096)
    degree, slots, scale = 4096, settings.slots, 2.0**settings.scale_bits
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    primes = sealapi.CoeffModulus.Create(degree, [60, 30])
    parameters.set_coeff_modulus(primes)
    prime = primes[0].value()
    seal = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
    encoder = sealapi.CKKSEncoder(seal)
    secret = SecretContext(settings, fresh_key(settings))
    rng = np.random.default_rng(0)
    sums = [ckks_vector(secret.context, rng.normal(0, 0.1, slots).tolist()) for _ in range(3)]

    def polynomials(vector: object) -> tuple[list[int], list[int]]:
        path = str(tmp_path / "ciphertext")
        vector.ciphertext()[0].save(path)  # type: ignore[attr-defined]
        loaded = sealapi.Ciphertext()
        loaded.load(seal, path)
        held = loaded.dyn_array()
        return [held.at(at) for at in range(degree)], [held.at(degree + at) for at in range(degree)]

    def right(noise: float) -> float:
        """The share of the roots at which the key that is found opens the third ciphertext."""
        factors, sides = [], []
        for vector in sums:
            told = np.array(vector.decrypt())
            told = covered(told, noise) if noise else told
            encoded = sealapi.Plaintext()
            encoder.encode((2 * told).tolist(), scale, encoded)
            twice, (c0, c1) = encoded.dyn_array(), polynomials(vector)
            sides.append([(twice.at(at) - c0[at] - c0[-1 - at]) % prime for at in range(degree)])
            factors.append(c1)
        (a, b, c), (u, v, w) = factors, sides
        key = [
            (u[at] * b[-1 - at] - a[-1 - at] * v[at]) * pow(a[at] * b[-1 - at] - a[-1 - at] * b[at], -1, prime) % prime
            for at in range(degree)
        ]
        hits = ((c[at] * key[at] + c[-1 - at] * key[-1 - at] - w[at]) % prime == 0 for at in range(degree))
        return sum(hits) / degree

    assert right(0) == 1
    assert right(settings.noise(1)) == 0
