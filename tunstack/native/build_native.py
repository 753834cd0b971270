"""How the C side is built: cffi in API mode, module `tunstack.native._native`.

`setup.py` takes `ffibuilder` from here. With `TUNSTACK_STRICT_BUILD=1` in the environment warnings are
errors. Paths are relative to the root of the source tree, where the build runs.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys

from cffi import FFI

_SOURCES = "tunstack/native/csrc"
_FLAGS = ["-O3", "-std=c99", "-Wall", "-Wextra", "-Wshadow"]

_FASTPATH = sys.platform == "linux"
"""The fast path needs epoll and /dev/net/tun."""

ffibuilder = FFI()

ffibuilder.cdef(
    """
    #define TS_COALESCE_FLOWS ...
    #define TS_TRUSTED ...
    #define TS_OPAQUE ...
    #define TS_ROW ...
    #define TS_BAD_GSO_TYPE ...
    #define TS_BAD_IP_HEADER ...
    #define TS_BAD_UDP_HEADER ...
    #define TS_BAD_TCP_HEADER ...
    #define TS_BAD_GSO_SIZE ...
    #define TS_NO_ROOM ...
    uint16_t ts_ones_sum(const uint8_t *data, size_t length, uint64_t initial);
    int64_t ts_coalesce(const uint8_t *const *frames, const uint32_t *lengths, const uint8_t *flags,
                        size_t count, int l2, uint32_t limit, uint8_t *out, size_t capacity, int32_t *rows);
    int64_t ts_segment(const uint8_t *frame, size_t length, int l2, uint32_t gso_size, uint32_t gso_type,
                       size_t gap, uint8_t *out, size_t capacity);
    """
)


def _fastpath_cdef() -> str:
    """What Python sees of the headers: all but what stands "Between the files"; without numbers."""
    parts = []
    headers = {
        "fastpath": "TS_FAST_FRAMES",
        "fast_brief": "TS_BRIEF_DOORS",
        "fast_udp": "TS_UDP_QUOTE",
        "fast_stream": "TS_STREAM_FRAME",
        "fast_switch": "TS_SWITCH_PORTS",
        "pipeline": "TS_RANDOM_WORDS",
        "fast_shape": "TS_SHAPE_READ",
    }
    for name, first in headers.items():
        text = (pathlib.Path(_SOURCES) / f"{name}.h").read_text()
        parts.append(text[text.index(f"#define {first}") : text.index("/* Between the files. */")])
    text = "".join(parts)
    text = re.sub(r"(#define \w+) .*", r"\1 ...", text)
    return re.sub(r"\[TS_\w+\]", "[...]", text)


if _FASTPATH:
    ffibuilder.cdef(_fastpath_cdef())


_NAMES = ["checksum", "coalesce", "segment"]
if _FASTPATH:
    _PARTS = (
        "table",
        "queue",
        "input",
        "output",
        "brief",
        "door",
        "isn",
        "stream",
        "message",
        "switch",
        "shape",
    )
    _UDP_PARTS = ("udp_table", "udp_up", "udp_down", "assembly")
    _NAMES += [*(f"fast_{name}" for name in (*_PARTS, *_UDP_PARTS, "loop")), "pipeline", "queues"]


def _compile_args() -> list[str]:
    if sys.platform == "win32":
        return ["/O2", "/W3"]
    strict = os.environ.get("TUNSTACK_STRICT_BUILD", "0") not in ("", "0")
    return [*_FLAGS, "-Werror"] if strict else _FLAGS


ffibuilder.set_source(
    "tunstack.native._native",
    """
    #if defined(__GNUC__)
    /* cffi's own wrappers, which follow in this file, do not use all of their parameters. */
    #pragma GCC diagnostic ignored "-Wunused-parameter"
    #pragma GCC diagnostic ignored "-Wmissing-field-initializers"
    #endif
    #include "native.h"
    #if defined(__linux__)
    #include "fast_brief.h"
    #include "fast_shape.h"
    #include "fast_switch.h"
    #include "fast_udp.h"
    #endif
    """,
    sources=[f"{_SOURCES}/{name}.c" for name in _NAMES],
    depends=sorted(map(str, pathlib.Path(_SOURCES).glob("*.h"))),
    include_dirs=[_SOURCES],
    extra_compile_args=_compile_args(),
)
