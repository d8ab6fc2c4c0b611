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
        path: Path = ()
        for part in self._key():
            path = (*path, part)
            if path in self.arrays and not array:
                path = (*path, self.arrays[path])
        self._space()
        self._take(closing)
        if array:
            # Outer arrays of tables are entered through their last element, the array itself gets a new one.
            path = self._through_arrays(path)
            self.arrays[path] = self.arrays.get(path, -1) + 1
            self.lines.setdefault(path, line)
            path = (*path, self.arrays[path])
        self.lines[path] = line
        return path

    def _through_arrays(self, path: Path) -> Path:
        out: Path = ()
        for part in path[:-1]:
            out = (*out, part)
            if out in self.arrays:
                out = (*out, self.arrays[out])
        return (*out, path[-1])

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
        return self.text.count("\n", 0, self.at) + 1
