"""How the protocol core is compiled: by mypyc, from the very Python that is read and tested.

`setup.py` takes `extensions` from here. Connections are opened, closed and repaired in Python, in several
hundred small functions of which none stands out; compiled they take about half of the time. What is
compiled behaves as what is interpreted, but that types are checked where values cross its border, that
classes made elsewhere cannot inherit from its classes but for `OPEN`, and that functions cannot be replaced
from outside.

Left out are what tests replace or inherit from, what cffi makes without types, exceptions and enumerations,
which mypyc has no native form for, and all that does not run for each packet or connection.
"""

from __future__ import annotations

import pathlib
from typing import Any

ROOT = pathlib.Path("tunstack")
ROOMS = ("ip", "tcp", "tcp/congestion", "stack", "nat", "link/shaping")
"""Compiled as a whole, but for `LEFT_OUT`."""
MODULES = (
    *("timers.py", "packet.py", "gateway/engine.py", "gateway/ports.py"),
    *(f"link/{name}.py" for name in ("arp", "ethernet", "framings", "guard", "interface", "neighbour")),
    *(f"link/{name}.py" for name in ("switch", "transmit")),
    *(f"link/devices/{name}.py" for name in ("datagram", "framed", "segment", "stream")),
    *(f"link/devices/{name}.py" for name in ("vnet", "vnet_header", "tap", "tun")),
)
LEFT_OUT = ("tcp/isn.py",)
"""Tests steer the sequence numbers."""
OPEN = ("tunstack.link.shaping.stage.Stage",)
"""Classes that say so themselves, by `mypyc_attr`: others may inherit from them."""
GROUP = "tunstack"
"""The one library behind all of them is the top-level module `tunstack__mypyc`."""


def sources() -> list[str]:
    """Paths of the modules that are compiled, from the root of the source tree."""
    found = {path for room in ROOMS for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"}
    found |= {ROOT / name for name in MODULES}
    return sorted(str(path) for path in found - {ROOT / name for name in LEFT_OUT})


def extensions() -> list[Any]:
    """What setuptools is to build: the library first, then a shim for each module, of no use without it.

    Raises:
        ImportError: mypy is not installed.
        SystemExit: mypyc does not like what it sees.
    """
    from mypyc.build import mypycify

    options = ["--follow-imports=silent", "--ignore-missing-imports"]
    made: list[Any] = mypycify([*options, *sources()], opt_level="1", debug_level="0", group_name=GROUP)
    for extension in made:
        extension.extra_compile_args.append(
            "-Wno-all"
        )  # Python's own -Wall makes gcc take four times as long
    made.sort(key=lambda extension: extension.name != f"{GROUP}__mypyc")
    return made
