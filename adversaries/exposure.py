"""Who sees what under which secure aggregation, as a table: the threat model's own, in Markdown.

python -m fedsim.adversaries.exposure
"""

from __future__ import annotations

from fedsim.adversaries.threat import SHOWS, WORDS
from fedsim.experiment import OFF

OF_SUMS = ("update", "num_examples")
"""What a server is shown of the sum alone, where a secure aggregation makes one."""


def markdown() -> str:
    """A row for each vantage, a column for each mode. Vantages that show the same with TLS as without have one row."""
    columns = list(dict.fromkeys(mode for _, _, mode in SHOWS))
    lines = ["| vantage | " + " | ".join(f"`{mode}`" for mode in columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for vantage in dict.fromkeys(place for place, _, _ in SHOWS):
        plain, encrypted = ([_cell(vantage, tls, mode) for mode in columns] for tls in (False, True))
        same = plain == encrypted
        lines.append(f"| `{vantage}`{'' if same else ' without TLS'} | " + " | ".join(plain) + " |")
        if not same:
            lines.append(f"| `{vantage}` with TLS | " + " | ".join(encrypted) + " |")
    return "\n".join(lines)


def _cell(vantage: str, tls: bool, mode: str) -> str:
    shown = SHOWS[vantage, tls, mode]
    summed = mode != OFF and vantage == "server"
    items = (
        f"{item} of the sum" if summed and item in OF_SUMS else item for item in sorted(shown, key=list(WORDS).index)
    )
    return ", ".join(item.replace("_", " ") for item in items)


if __name__ == "__main__":
    print(markdown())
