"""Shared secrets: a threshold of the shares restores them, one fewer says nothing, what is no share is refused."""

from __future__ import annotations

import itertools
import random
import secrets

import pytest

from fedsim.errors import ProtocolError
from fedsim.secagg.shamir import PRIME, Reconstructor, check_share, split


def is_prime(number: int) -> bool:
    """Miller and Rabin, 64 random bases: a composite passes with a chance below 4^-64."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(64):
        power = pow(random.randrange(2, number - 1), odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_the_smallest_prime_above_every_secret() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(2**256 + step) for step in range(297))


@pytest.mark.parametrize("threshold", [1, 2, 3, 4, 5])
def test_any_threshold_of_the_shares_restores_the_secret(threshold: int) -> None:
    secret, holders = secrets.token_bytes(32), [7, 0, 30, 4, 12]
    shares = split(secret, threshold, holders)
    assert list(shares) == holders and {len(share) for share in shares.values()} == {33}
    restore = Reconstructor(threshold)
    for count in range(threshold, len(holders) + 1):
        for chosen in itertools.permutations(holders, count):
            assert restore.combine({holder: shares[holder] for holder in chosen}) == secret


@pytest.mark.parametrize(("threshold", "holders"), [(36, 100), (11, 37), (2, 50), (50, 50)])
def test_many_holders(threshold: int, holders: int) -> None:
    restore = Reconstructor(threshold)
    for secret in (bytes(32), b"\xff" * 32, secrets.token_bytes(32)):
        shares = split(secret, threshold, range(holders))
        chosen = random.sample(range(holders), threshold)
        assert restore.combine({holder: shares[holder] for holder in chosen}) == secret


def test_shares_of_a_known_polynomial() -> None:
    """5 + 3 x + 2 x^2 by hand: at 1, 2, 4 (holders 0, 1, 3) it is 10, 19, 49."""
    shares = {0: 10, 1: 19, 3: 49}
    found = Reconstructor(3).combine({holder: value.to_bytes(33, "big") for holder, value in shares.items()})
    assert int.from_bytes(found, "big") == 5


def test_fewer_shares_fit_every_secret() -> None:
    """With threshold - 1 shares fixed, each candidate secret has exactly one value of the missing share."""
    threshold, secret = 4, secrets.token_bytes(32)
    shares = split(secret, threshold, range(6))
    known = {holder: shares[holder] for holder in range(threshold - 1)}
    restore, missing = Reconstructor(threshold), threshold - 1

    def restored(value: int) -> int:
        # The weights are linear: the sum before it is brought to 32 bytes, from two values of the missing share.
        weights = restore._weights[tuple(range(threshold))]
        known_part = sum(w * int.from_bytes(known[h], "big") for h, w in zip(known, weights, strict=False))
        return (known_part + weights[missing] * value) % PRIME

    restore.combine(shares)
    assert restored(int.from_bytes(shares[missing], "big")) == int.from_bytes(secret, "big")
    slope = (restored(1) - restored(0)) % PRIME
    for candidate in (bytes(32), b"\xff" * 32, secrets.token_bytes(32), secret):
        value = (int.from_bytes(candidate, "big") - restored(0)) * pow(slope, -1, PRIME) % PRIME
        assert restore.combine({**known, missing: value.to_bytes(33, "big")}) == candidate


def test_fewer_shares_are_distributed_alike_for_any_secret() -> None:
    """Two shares of threshold 3: their bytes are uniform, for the secret of zeros too (chi-square, 255 degrees)."""
    for secret in (bytes(32), b"\xff" * 32):
        counts = {(holder, place): [0] * 256 for holder in (0, 1) for place in (1, 16, 32)}
        rounds = 4096
        for _ in range(rounds):
            shares = split(secret, 3, (0, 1, 2))
            for (holder, place), count in counts.items():
                count[shares[holder][place]] += 1
        for count in counts.values():
            # 450: more than eight standard deviations (22.6) above the mean of 255.
            assert sum((seen - rounds / 256) ** 2 for seen in count) / (rounds / 256) < 450


def test_one_share_fewer_does_not_restore() -> None:
    secret = secrets.token_bytes(32)
    for threshold in range(2, 9):
        shares = split(secret, threshold, range(10))
        try:
            found = Reconstructor(threshold - 1).combine(shares)
        except ProtocolError:
            continue
        assert found != secret


def test_the_lowest_ids_are_used_and_no_more() -> None:
    secret = secrets.token_bytes(32)
    shares = split(secret, 3, range(5))
    assert Reconstructor(3).combine({**shares, 3: bytes(33), 4: b"nonsense"}) == secret
    assert Reconstructor(3).combine({**shares, 2: bytes(33)}) != secret


def test_weights_are_computed_once_for_a_set_of_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.secagg import shamir

    calls, original = [], shamir._weights
    monkeypatch.setattr(shamir, "_weights", lambda places: calls.append(places) or original(places))
    restore = Reconstructor(2)
    for _ in range(3):
        secret = secrets.token_bytes(32)
        shares = split(secret, 2, range(4))
        assert restore.combine({1: shares[1], 3: shares[3]}) == restore.combine({3: shares[3], 1: shares[1]}) == secret
        assert restore.combine({0: shares[0], 1: shares[1]}) == secret
    assert calls == [[2, 4], [1, 2]]


def test_what_is_no_share_is_refused() -> None:
    shares = split(secrets.token_bytes(32), 3, (2, 5, 9))
    restore = Reconstructor(3)
    with pytest.raises(ProtocolError, match="2 shares of a secret are there, and 3 are needed"):
        restore.combine({2: shares[2], 5: shares[5]})
    for length in (0, 32, 34):
        with pytest.raises(ProtocolError, match=f"client 5 has {length} bytes, not 33"):
            restore.combine({**shares, 5: bytes(length)})
    for value in (PRIME, 2**264 - 1):
        with pytest.raises(ProtocolError, match="client 9 is no number below"):
            restore.combine({**shares, 9: value.to_bytes(33, "big")})
    assert check_share(9, (PRIME - 1).to_bytes(33, "big")) == PRIME - 1
    with pytest.raises(ProtocolError, match="no holder -1"):
        restore.combine({**shares, -1: shares[2]})


def test_a_result_that_is_no_secret_is_refused() -> None:
    """Shares of the constant polynomial 2^256, which no 32 bytes say."""
    beyond = (2**256).to_bytes(33, "big")
    with pytest.raises(ProtocolError, match="clients 0, 1 are not of one secret"):
        Reconstructor(2).combine({0: beyond, 1: beyond})


@pytest.mark.parametrize(
    ("secret", "threshold", "holders"),
    [
        (bytes(31), 2, [0, 1]),
        (bytes(32), 0, [0, 1]),
        (bytes(32), 3, [0, 1]),
        (bytes(32), 2, [1, 1, 2]),
        (bytes(32), 2, [-1, 0]),
    ],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, holders: list[int]) -> None:
    with pytest.raises(ValueError):
        split(secret, threshold, holders)
