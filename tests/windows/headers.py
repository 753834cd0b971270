"""Whether what cffi is told of wintun.dll and iphlpapi.dll is what the headers of Windows and Wintun say.

mingw's compiler compares: each prototype by its type, each field of a structure by place and size, constants
by value. A prototype with a wrong parameter has to be refused, lest the comparison means nothing.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
from collections.abc import Iterator

from tunstack.link.devices import iphlpapi, wintun_api
from tunstack.services import windows_resolvers

TYPES = {"char16_t": "WCHAR", "uint64_t": "NET_LUID"}
"""What cffi is told, and how the headers call the same, where they do not use the same name."""
NOT_IN_MINGW = {"SetInterfaceDnsSettings", "DNS_INTERFACE_SETTINGS"}
"""The headers of Debian 12 are older than these."""
FIELDS = {"GUID": {"data1": "Data1", "data2": "Data2", "data3": "Data3", "data4": "Data4"}}
ELSEWHERE = {"port", "ipv4", "ipv6", ""}
"""Fields that go by a path of their own."""
CONSTANTS = {
    "IPV4": "AF_INET",
    "IPV6": "AF_INET6",
    "DAD_PREFERRED": "IpDadStatePreferred",
    "ACCESS_DENIED": "ERROR_ACCESS_DENIED",
    "NOT_SUPPORTED": "ERROR_NOT_SUPPORTED",
    "INVALID_PARAMETER": "ERROR_INVALID_PARAMETER",
    "NO_FUNCTION": "ERROR_PROC_NOT_FOUND",
    "NOT_FOUND": "ERROR_NOT_FOUND",
    "EXISTS": "ERROR_OBJECT_ALREADY_EXISTS",
}
WINTUN_CONSTANTS = {
    "LARGEST": "WINTUN_MAX_IP_PACKET_SIZE",
    "LEAST_CAPACITY": "WINTUN_MIN_RING_CAPACITY",
    "MOST_CAPACITY": "WINTUN_MAX_RING_CAPACITY",
    "NOT_THERE": "ERROR_FILE_NOT_FOUND",
    "ACCESS_DENIED": "ERROR_ACCESS_DENIED",
    "INVALID_DATA": "ERROR_INVALID_DATA",
    "HANDLE_EOF": "ERROR_HANDLE_EOF",
    "INVALID_PARAMETER": "ERROR_INVALID_PARAMETER",
    "BUFFER_OVERFLOW": "ERROR_BUFFER_OVERFLOW",
    "MOD_NOT_FOUND": "ERROR_MOD_NOT_FOUND",
    "ALREADY_EXISTS": "ERROR_ALREADY_EXISTS",
    "NO_MORE_ITEMS": "ERROR_NO_MORE_ITEMS",
    "NOT_FOUND": "ERROR_NOT_FOUND",
    "ALREADY_INITIALIZED": "ERROR_ALREADY_INITIALIZED",
    "TAKEN": "ERROR_OBJECT_ALREADY_EXISTS",
}
HEAD = """
#include <winsock2.h>
#include <ws2ipdef.h>
#include <windows.h>
#include <iphlpapi.h>
#include <netioapi.h>
#include <stddef.h>
#define _Post_maybenull_
#include "wintun.h"
#define SAME(type, ...) _Static_assert(__builtin_types_compatible_p(type, __VA_ARGS__), #type)
#define AT(type, field, offset, size) \\
    _Static_assert(offsetof(type, field) == offset && sizeof(((type *)0)->field) == size, #type "." #field)
#define IS(name, value) _Static_assert((long long)(name) == value, #name)
"""


def prototypes(definitions: str) -> Iterator[tuple[str, str, str]]:
    """(what it gives, name, parameters) of each function in a text for cffi."""
    text = re.sub(r"typedef struct \{.*?\n\} \w+;", "", definitions, flags=re.DOTALL)
    for result, name, parameters in re.findall(r"([\w *]+?)\s*__stdcall (\w+)\((.*)\);", text):
        yield result.strip(), name, parameters


def split(parameters: str) -> list[str]:
    """Each one; a function among them is alone."""
    if parameters == "void":
        return []
    return [parameters] if "(" in parameters else parameters.split(", ")


def wintun_lines() -> Iterator[str]:
    """The functions of wintun.h, each by the type that it has there."""
    handles = {"adapter": "WINTUN_ADAPTER_HANDLE", "session": "WINTUN_SESSION_HANDLE"}
    for result, name, parameters in prototypes(wintun_api.DEFINITIONS):
        words = []
        for parameter in split(parameters):
            kind, _, own = parameter.rpartition(" ")
            if "logger" in parameter:
                words.append("WINTUN_LOGGER_CALLBACK")
            elif parameter.startswith("void *") and own.strip("*") in handles:
                words.append(handles[own.strip("*")])
            elif own.strip("*") == "guid":
                words.append("const GUID *")
            elif own.strip("*") == "luid":
                words.append("NET_LUID *")
            else:
                words.append(_windows(kind + "*" * own.count("*")))
        gives = {"WintunCreateAdapter": 0, "WintunOpenAdapter": 0, "WintunStartSession": 1}.get(name)
        gave = _windows(result) if gives is None else list(handles.values())[gives]
        if name == "WintunGetReadWaitEvent":
            gave = "HANDLE"
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
        yield f"SAME({kind}_FUNC, {gave} WINAPI ({', '.join(words) or 'void'}));"


def _windows(text: str) -> str:
    """A type of fixed width as Wintun's header has it."""
    for ours, theirs in {
        "char16_t": "WCHAR",
        "uint64_t": "DWORD64",
        "uint32_t": "DWORD",
        "uint8_t": "BYTE",
        "int32_t": "BOOL",
    }.items():
        text = re.sub(rf"\b{ours}\b", theirs, text)
    return text


def interface_lines() -> Iterator[str]:
    """The functions of netioapi.h."""
    for result, name, parameters in prototypes(iphlpapi.DEFINITIONS):
        if name in NOT_IN_MINGW:
            continue
        words = []
        for parameter in parameters.split(", "):
            kind, _, own = parameter.rpartition(" ")
            kind = re.sub(r"\w+$", lambda match: TYPES.get(match[0], match[0]), kind)
            words.append(kind + "*" * own.count("*"))
        gives = {"void": "VOID", "uint32_t": "NETIO_STATUS"}[result]
        yield f"SAME(__typeof__({name}), {gives} NETIOAPI_API_ ({', '.join(words)}));"


def layout_lines() -> Iterator[str]:
    """Where the fields of the structures lie."""
    on_lines = re.findall(r"^\} (\w+);", iphlpapi.DEFINITIONS, flags=re.MULTILINE)
    of_interfaces = [*on_lines, "IP_ADDRESS_PREFIX", "GUID"]
    of_resolvers = ["IP_ADDR_STRING", "FIXED_INFO"]
    for ffi, names in ((iphlpapi.ffi, of_interfaces), (windows_resolvers.ffi, of_resolvers)):
        for name in names:
            if name in NOT_IN_MINGW:
                continue
            yield f'_Static_assert(sizeof({name}) == {ffi.sizeof(name)}, "{name}");'
            for field, kind in ffi.typeof(name).fields:
                if name == "SOCKADDR_INET" and field in ELSEWHERE:
                    continue
                theirs = FIELDS.get(name, {}).get(field, field)
                yield f"AT({name}, {theirs}, {kind.offset}, {ffi.sizeof(kind.type)});"
    for path, theirs, size in (
        (("ipv4",), "Ipv4.sin_addr", 4),
        (("ipv6", "flow"), "Ipv6.sin6_flowinfo", 4),
        (("ipv6", "address"), "Ipv6.sin6_addr", 16),
        (("ipv6", "scope"), "Ipv6.sin6_scope_id", 4),
    ):
        yield f"AT(SOCKADDR_INET, {theirs}, {iphlpapi.ffi.offsetof('SOCKADDR_INET', *path)}, {size});"


def constant_lines() -> Iterator[str]:
    """Errors and bounds."""
    for module, names in ((iphlpapi, CONSTANTS), (wintun_api, WINTUN_CONSTANTS)):
        for ours, theirs in names.items():
            yield f"IS({theirs}, {getattr(module, ours)});"


def check(compiler: str, include: pathlib.Path) -> str:
    """Compare; gives a sentence. Fails if anything differs, or if nothing would be found."""
    lines = [*wintun_lines(), *interface_lines(), *layout_lines(), *constant_lines()]
    problem = _compile(compiler, include, lines)
    if problem:
        raise SystemExit(f"the declarations for cffi differ from the headers:\n{problem}")
    for number, line in enumerate(lines):
        if line.startswith("SAME"):
            wrong = line.replace("(void)", "(int)") if "(void)" in line else line.replace("));", ", int));")
        else:
            wrong = re.sub(r"(\d+)(, \"|\))", lambda match: f"{int(match[1]) + 1}{match[2]}", line, count=1)
        if number % 20 == 0 and (wrong == line or not _compile(compiler, include, [wrong])):
            raise SystemExit(f"a wrong declaration is not found: {wrong}")
    return f"{len(lines)} declarations for cffi are as the headers have them"


def _compile(compiler: str, include: pathlib.Path, lines: list[str]) -> str:
    warnings = ("-Wall", "-Werror", "-Wno-unknown-pragmas")
    words = [compiler, "-std=gnu11", *warnings, "-fsyntax-only", "-I", str(include), "-x", "c", "-"]
    done = subprocess.run(
        words, input="\n".join([HEAD, *lines, ""]), text=True, capture_output=True, check=False
    )
    return done.stderr if done.returncode else ""
