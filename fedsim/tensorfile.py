"""Named tensors with JSON facts beside them, as safetensors bytes. No pickle; the same content gives the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

_KEY = "fedsim"


def pack(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of one file. The order of the tensors is kept; facts must be JSON data."""
    # safetensors sorts by type and name, and wants one memory for each name.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {"order": list(tensors), "facts": dict(facts)}
    return safetensors.torch.save(plain, metadata={_KEY: json.dumps(header, sort_keys=True)})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts from such bytes. Raises ValueError where they are no such file."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        tensors = safetensors.torch.load(data)
        return {name: tensors[name] for name in header["order"]}, header["facts"]
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"not a tensor file of fedsim, or a damaged one: {error}") from None


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
