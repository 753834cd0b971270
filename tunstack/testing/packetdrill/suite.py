"""Several scripts: finding them, running each, one capture of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tunstack.link.capture import INBOUND, LINKTYPE_RAW, OUTBOUND, PcapngWriter
from tunstack.testing.packetdrill.language.errors import Position, ScriptError
from tunstack.testing.packetdrill.language.syntax import Option
from tunstack.testing.packetdrill.result import Result
from tunstack.testing.packetdrill.runner import PacketTap, Trace, run_text

SUFFIX = ".pkt"
_PAUSE = 1.0
"""Seconds between two scripts in one capture."""


def find_scripts(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The scripts that `paths` name: files as they are, of a directory all `*.pkt` below it, sorted.

    Raises:
        FileNotFoundError: with a sentence, for a path that is not there or a directory without scripts.
    """
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found = sorted(path.rglob(f"*{SUFFIX}"))
            if not found:
                raise FileNotFoundError(f"there is no *{SUFFIX} below {path}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path} does not exist")


def run_file(
    path: str | Path,
    *,
    options: Iterable[Option] = (),
    definitions: Mapping[str, str] | None = None,
    trace: Trace | None = None,
    tap: PacketTap | None = None,
) -> Result:
    """Run the script in the file `path`; the rest as in `run_text`. Raises OSError if it cannot be read."""
    data = Path(path).read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - before.rfind(b"\n")
        result = Result(str(path))
        position = Position(before.count(b"\n") + 1, column)
        result.reject(ScriptError("the script is not text in UTF-8", position, str(path)))
        return result
    return run_text(text, str(path), options=options, definitions=definitions, trace=trace, tap=tap)


class Capture:
    """All packets of all scripts in one pcapng file, one script after the other; time 0 is 1970."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._writer = PcapngWriter(write, LINKTYPE_RAW, name="packetdrill")
        self._base = 0.0
        self._latest = 0.0

    def begin(self) -> None:
        """The next script begins."""
        if self._latest:
            self._base = self._latest + _PAUSE

    def packet(self, time: float, data: bytes, outbound: bool) -> None:
        """A packet at `time` seconds of the script."""
        self._latest = self._base + time
        self._writer.packet(data, self._latest, OUTBOUND if outbound else INBOUND)
