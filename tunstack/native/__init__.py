"""What moves bytes: checksums, GRO and GSO, in C where the extension is there, else in Python.

`implementation` says which of the two it is. `TUNSTACK_PURE=1` in the environment asks for the
Python twin. `warning` is a sentence for the user if the twin runs without having been
asked for; the command line prints it once.
"""

from __future__ import annotations

from os import environ

implementation: str
warning: str | None = None

if environ.get("TUNSTACK_PURE", "0") not in ("", "0"):
    from tunstack.native.pure import coalesce, complete_checksum, ones_sum, ones_sum_views, segment

    implementation = "python"
else:
    try:
        from tunstack.native.accelerated import coalesce, complete_checksum, ones_sum, ones_sum_views, segment

        implementation = "c"
    except ImportError as error:
        from tunstack.native.pure import coalesce, complete_checksum, ones_sum, ones_sum_views, segment

        implementation = "python"
        warning = (
            f"the C helper of tunstack is not available ({error}); "
            "its slower Python twin is used: reinstall tunstack with a C compiler at hand"
        )


def describe_build() -> str:
    """What moves the bytes, and whether the protocol core is compiled."""
    from tunstack import timers

    helper = "C helper" if implementation == "c" else "Python twin of the C helper"
    return f"{helper}, {'interpreted' if timers.__file__.endswith('.py') else 'compiled'} core"


__all__ = [
    "coalesce",
    "complete_checksum",
    "describe_build",
    "implementation",
    "ones_sum",
    "ones_sum_views",
    "segment",
    "warning",
]
