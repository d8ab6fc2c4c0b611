"""Key agreement, derivation and sealing: the vectors of their standards, what a key is bound to, what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from fedsim.errors import ProtocolError
from fedsim.secagg.base import Refused
from fedsim.secagg.keys import Context, agree, decrypt, derive_key, encrypt, new_pair


def test_agreement_is_that_of_rfc_7748() -> None:
    """Section 6.1."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert agree(alice, bob_public) == agree(bob, alice_public) == shared


def test_derivation_is_that_of_rfc_5869() -> None:
    """Appendix A.3 (no salt, no info); of its 42 bytes the first 32 are what a shorter output is."""
    expected = bytes.fromhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")
    assert derive_key(b"\x0b" * 22, b"") == expected
    assert derive_key(b"\x0b" * 22, b"other") != expected


def test_sealing_is_that_of_rfc_8439() -> None:
    """Section 2.8.2: a message sealed by others opens."""
    key = bytes(range(0x80, 0xA0))
    sealed = bytes.fromhex(
        "070000004041424344454647"
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"
    )
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would "
        b"be it."
    )
    assert decrypt(key, sealed, bytes.fromhex("50515253c0c1c2c3c4c5c6c7")) == text


def test_two_fresh_pairs_agree_and_never_repeat() -> None:
    first, second, third = new_pair(), new_pair(), new_pair()
    assert agree(first.private, second.public) == agree(second.private, first.public)
    assert agree(first.private, third.public) != agree(first.private, second.public)
    assert {len(part) for pair in (first, second) for part in (pair.private, pair.public)} == {32}
    assert repr(first.private) not in repr(first) and first.private.hex() not in repr(first)


# Points of order 1, 2, 4 and 8 of Curve25519 and its twist, and 0 and 1 written as p and p + 1.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_is_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="low order"):
        agree(new_pair().private, bytes.fromhex(point))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    pair = new_pair()
    with pytest.raises(ProtocolError, match=f"public key has {length} bytes"):
        agree(pair.private, bytes(length))
    with pytest.raises(ProtocolError, match=f"private key has {length} bytes"):
        agree(bytes(length), pair.public)


def test_both_ends_derive_the_same_and_everything_else_another() -> None:
    context = Context(run=7, round=2, clients=(3, 1, 2, 12))
    same = context.info("mask", 1, 12, b"model")
    assert context.info("mask", 12, 1, b"model") == same
    assert Context(7, 2, (12, 2, 1, 3)).info("mask", 1, 12, b"model") == same
    others = [
        context.info("shares", 1, 12, b"model"),
        context.info("mask", 1, 2, b"model"),
        context.info("mask", 11, 2, b"model"),
        context.info("mask", 1, 12, b"another"),
        context.info("mask", 1, 12),
        Context(7, 3, (3, 1, 2, 12)).info("mask", 1, 12, b"model"),
        Context(72, 2, (3, 1, 2, 12)).info("mask", 1, 12, b"model"),
        Context(7, 2, (3, 1, 2, 12, 4)).info("mask", 1, 12, b"model"),
        Context(7, 2, (3, 1, 21, 2)).info("mask", 1, 12, b"model"),
        Context(7, 2, (31, 2, 12)).info("mask", 1, 12, b"model"),
    ]
    assert len({same, *others}) == len(others) + 1
    assert len({derive_key(bytes(32), info) for info in (same, *others)}) == len(others) + 1


def test_no_two_lists_of_numbers_read_alike() -> None:
    """Digits that move from one number to the next: run 1 round 23, and run 12 round 3."""
    numbers = itertools.product((1, 11), (1, 11), (1, 11), (1, 11))
    found = {Context(run, round_, (1, 11)).info("p", *sorted(ends)) for run, round_, *ends in numbers}
    assert len(found) == 2 * 2 * 3, "two ends in either order are one pair"
    assert Context(1, 1, (1, 23)).info("p", 1, 1) != Context(1, 1, (12, 3)).info("p", 1, 1)
    assert Context(1, 1, (1,)).info("1p", 1, 1) != Context(1, 1, (1,)).info("p", 1, 11)


def test_a_client_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Context(1, 1, (1, 2, 1))


def test_a_sealed_message_opens_only_unchanged() -> None:
    key, header = derive_key(b"secret", b""), b"round 1, 2 -> 5"
    sealed = encrypt(key, b"share", header)
    assert decrypt(key, sealed, header) == b"share"
    assert encrypt(key, b"share", header) != sealed, "the nonce is fresh"
    assert len(sealed) == 12 + 5 + 16
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(Refused, match="the shares of client 2 was changed"):
            decrypt(key, bytes(changed), header, "the shares of client 2")
    with pytest.raises(Refused, match=r"round 1, 5 -> 2"):
        decrypt(key, sealed, b"round 1, 5 -> 2")
    with pytest.raises(Refused):
        decrypt(derive_key(b"other", b""), sealed, header)
    for short in (b"", sealed[:27]):
        with pytest.raises(Refused, match="cut short"):
            decrypt(key, short, header)


def test_neither_torch_nor_numpy_is_needed() -> None:
    code = (
        "import sys; import fedsim.secagg.keys, fedsim.secagg.shamir, fedsim.secagg.graph, fedsim.secagg.parameters; "
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
