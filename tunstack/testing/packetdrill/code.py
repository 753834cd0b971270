"""Code in a script: `%{ assert tcpi_snd_cwnd == 10 }%`, Python with a snapshot of TCP_INFO as its variables.

All pieces of one script share their variables, which each piece finds renewed: the fields of TCP_INFO of the
connection that was accepted or connected last, and the names of TCP states (TCP_ESTABLISHED and so on).
"""

from __future__ import annotations

import contextlib
import io
import textwrap

from tunstack.testing.packetdrill.result import Failure
from tunstack.testing.packetdrill.system import System, Unsupported
from tunstack.testing.packetdrill.system.constants import TCP_STATES


class CodeRunner:
    """Runs the code of one script."""

    def __init__(self) -> None:
        self._names: dict[str, object] = {"__name__": "packetdrill"}

    def run(self, text: str, system: System, descriptor: int | None) -> str:
        """Run `text`; what it printed.

        Raises:
            Failure: it raised an exception, or is not Python.
        """
        self._names.update(TCP_STATES)
        if descriptor is not None:
            with contextlib.suppress(Unsupported):  # no TCP socket: the code may do without
                self._names.update(system.tcp_info(descriptor))
        output = io.StringIO()
        try:
            program = compile(_dedent(text), "code", "exec")
            with contextlib.redirect_stdout(output):
                exec(program, self._names)
        except Exception as error:
            raise Failure("code", _explain(error, text)) from None
        return output.getvalue()


def _dedent(text: str) -> str:
    """The code without its common indentation; its first line may stand right behind `%{`."""
    first, newline, rest = text.partition("\n")
    return textwrap.dedent(first.strip() + newline + textwrap.dedent(rest)).strip() + "\n"


def _explain(error: Exception, text: str) -> str:
    if isinstance(error, SyntaxError):
        return f"the code is not Python: {error.msg}"
    line = error.__traceback__
    number = 0
    while line is not None:
        if line.tb_frame.f_code.co_filename == "code":
            number = line.tb_lineno
        line = line.tb_next
    lines = _dedent(text).splitlines()
    source = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{what} in `{source}`" if source else what
