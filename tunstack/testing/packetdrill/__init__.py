"""Scripts in the packetdrill language, run against the stack in virtual time.

    result = run_file("tests/handshake.pkt")
    assert result.passed, report(result)

`language/` reads scripts, `runner.py` plays them, `system/` is the POSIX face of the stack that their system
calls see. The language, and what of it is supported, is described in docs/testing/packetdrill.md.
"""

from tunstack.testing.packetdrill.language.errors import Position, ScriptError, UnsupportedSyntax
from tunstack.testing.packetdrill.language.parser import parse
from tunstack.testing.packetdrill.language.printer import format_script
from tunstack.testing.packetdrill.result import Result, Verdict, report, summary
from tunstack.testing.packetdrill.runner import run_text
from tunstack.testing.packetdrill.settings import parse_option
from tunstack.testing.packetdrill.suite import Capture, find_scripts, run_file

__all__ = [
    "Capture",
    "Position",
    "Result",
    "ScriptError",
    "UnsupportedSyntax",
    "Verdict",
    "find_scripts",
    "format_script",
    "parse",
    "parse_option",
    "report",
    "run_file",
    "run_text",
    "summary",
]
