"""Number types for the settings of a component.

A component's settings are the fields of a frozen dataclass. Annotating a field with one of these types (or with any
`pydantic` constraint) is all that is needed for an experiment file to be checked against it, with file, line and key
in the error. Nothing here imports torch: an experiment is validated before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

NAME_PATTERN = r"^[^\x00-\x1f\x7f/\\.][^\x00-\x1f\x7f/\\]*$"
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+)?|mps)$"
RAY_PATTERN = r"^(local|auto|(ray://)?[A-Za-z0-9_.\-]+:\d{1,5}|(ray://)?\[[0-9A-Fa-f:.]+\]:\d{1,5})$"

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]
"""A name that files can have: no slashes, no line ends, no dot in front, at most 80 characters."""

Device = Annotated[str, Field(pattern=DEVICE_PATTERN)]
"""`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""

RayAddress = Annotated[str, Field(pattern=RAY_PATTERN)]
"""`local`, `auto`, `ray://HOST:PORT` or `HOST:PORT`."""

Count = Annotated[int, Field(ge=1, lt=2**63)]
"""A whole number from 1 on."""

Index = Annotated[int, Field(ge=0, lt=2**63)]
"""A whole number from 0 on."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number from 0 on."""

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A number from 0 to 1, both included."""

OpenFraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A number from 0, included, to 1, excluded."""
