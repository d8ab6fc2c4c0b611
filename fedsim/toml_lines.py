"""On which line of a TOML text each key stands. `tomllib` parses but forgets; an error message needs the line.

The text has already been parsed, so it is valid TOML: this only walks over it. A path is a tuple of table keys and list
positions, e.g. ("clients", "groups", 0, "members"). Keys inside inline tables and arrays are found too.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL)


def locate(text: str) -> dict[Path, int]:
    """The line, counted from 1, of every key and of every table header in a valid TOML text."""
    walker = _Walker(text)
    walker.document()
    return walker.lines


class _Walker:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self._counted, self._number = 0, 1
        self.lines: dict[Path, int] = {}
        self.arrays: dict[Path, int] = {}

    def document(self) -> None:
        here: Path = ()
        while self._space(newlines=True):
            if self._take("[["):
                here = self._header("]]", array=True)
            elif self._take("["):
                here = self._header("]", array=False)
            else:
                self._pair(here)

    def _header(self, closing: str, *, array: bool) -> Path:
        line = self._line()
        *outer, last = self._key()
        self._space()
        self._take(closing)
        path: Path = ()
        for part in outer:
            # Outer arrays of tables are entered through their last element.
            path = self._entered((*path, part))
            # `[a.b.c]` makes `a` and `a.b` as well, unless they are there.
            self.lines.setdefault(path, line)
        path = (*path, last)
        if array:  # the array itself gets a new element
            self.arrays[path] = self.arrays.get(path, -1) + 1
            self.lines.setdefault(path, line)
        path = self._entered(path)
        self.lines[path] = line
        return path

    def _entered(self, path: Path) -> Path:
        return (*path, self.arrays[path]) if path in self.arrays else path

    def _pair(self, here: Path) -> None:
        line = self._line()
        path = here
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._space()
        self._take("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        self._space()
        if self._take("["):
            position = 0
            while self._space(newlines=True) and not self._take("]"):
                self.lines[(*path, position)] = self._line()
                self._value((*path, position))
                self._space(newlines=True)
                self._take(",")
                position += 1
        elif self._take("{"):
            while self._space(newlines=True) and not self._take("}"):
                self._pair(path)
                self._space(newlines=True)
                self._take(",")
        elif string := _STRINGS.match(self.text, self.at):
            self.at = string.end()
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._space()
            if bare := _BARE.match(self.text, self.at):
                parts.append(bare.group())
                self.at = bare.end()
            elif string := _STRINGS.match(self.text, self.at):
                parts.append(tomllib.loads(f"x = {string.group()}")["x"])
                self.at = string.end()
            self._space()
            if not self._take("."):
                return parts

    def _space(self, newlines: bool = False) -> bool:
        """Skip blanks and comments; whether anything is left."""
        blanks = " \t\r\n" if newlines else " \t"
        while self.at < len(self.text):
            if self.text[self.at] in blanks:
                self.at += 1
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return True
            if not newlines and self.text[self.at : self.at + 1] == "\n":
                return True
        return False

    def _take(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _line(self) -> int:
        """The line of the place that was come to. Counted on from the last one: a list may have very many items."""
        self._number += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._number
