"""The packet that a checker wants, as a line like that of `describe`, with a star for what is left open."""

from __future__ import annotations

from typing import Any

from tunstack.testing.checkers.base import Checker, Outline
from tunstack.testing.checkers.fields import letters_of
from tunstack.testing.checkers.predicates import Predicate, show

_IP_IN_LINE = frozenset({"ip.version", "ip.src", "ip.dst"})
_OPTIONS = (
    ("tcp.mss", "mss"),
    ("tcp.sack_permitted", "sackOK"),
    ("tcp.timestamps", "TS"),
    ("tcp.window_scale", "wscale"),
    ("tcp.sack", "sack"),
    ("tcp.fast_open", "tfo"),
)


def line_for(checker: Checker) -> str:
    """What `checker` wants; alternatives are joined by "or"."""
    lines = list(dict.fromkeys(map(_line, checker.outlines())))
    if len(lines) > 6:
        lines = [*lines[:5], f"{len(lines) - 5} more"]
    return "\n      or: ".join(lines)


def _line(outline: Outline) -> str:
    if "not" in outline:
        rest = {key: value for key, value in outline.items() if key != "not"}
        return f"{_line(rest)}, not {outline['not']}" if rest else f"not {outline['not']}"
    parts: list[str] = []
    if "tcp" in outline:
        parts.append(f"{_addresses(outline, 'tcp')}: {_tcp(outline)}")
    elif "udp" in outline:
        parts.append(f"{_addresses(outline, 'udp')}: UDP{_length(outline)}")
    elif "icmp" in outline:
        parts.append(f"{_addresses(outline, None)}: ICMP{_rest(outline, 'icmp', ' ')}{_length(outline)}")
        if "quote" in outline:
            parts.append(f"[{line_for(outline['quote'])}]")
    elif "ip" in outline:
        parts.append(f"{_addresses(outline, None)}:{_length(outline) or ' *'}")
    elif "arp" in outline:
        parts.append(f"ARP{_rest(outline, 'arp', ', ')}")
    elif "length" in outline:
        parts.append(f"*{_length(outline)}")
    else:
        parts.append("any packet")
    ip = [f"{key[3:]} {show(outline[key])}" for key in outline if key[:3] == "ip." and key not in _IP_IN_LINE]
    if ip:
        parts.append(f"({', '.join(ip)})")
    if "ethernet" in outline:
        parts.append(f"(frame{_rest(outline, 'ethernet', ' ')})")
    if "problems" in outline:
        parts.append(f"({show(outline['problems'])})")
    return " ".join(parts)


def _addresses(outline: Outline, ports: str | None) -> str:
    version = outline.get("ip.version")
    known = next((str(outline[key]) for key in ("ip.src", "ip.dst") if isinstance(outline.get(key), str)), "")
    if version is None and known:
        version = 6 if ":" in known else 4
    name = {4: "IP", 6: "IP6"}.get(version, "IP*") if isinstance(version, int) else "IP*"
    src, dst = (_open(outline.get(f"ip.{end}")) for end in ("src", "dst"))
    if ports is None:
        return f"{name} {src} > {dst}"
    src_port, dst_port = (_open(outline.get(f"{ports}.{end}")) for end in ("src_port", "dst_port"))
    return f"{name} {src}.{src_port} > {dst}.{dst_port}"


def _open(value: Any) -> str:
    return "*" if value is None else show(value)


def _length(outline: Outline) -> str:
    return f", length {show(outline['length'])}" if "length" in outline else ""


def _rest(outline: Outline, layer: str, before: str) -> str:
    start = f"{layer}."
    shown = [f"{key[len(start) :]} {show(value)}" for key, value in outline.items() if key.startswith(start)]
    return before + ", ".join(shown) if shown else ""


def _tcp(outline: Outline) -> str:
    flags = outline.get("tcp.flags")
    letters = letters_of(flags) if isinstance(flags, int) else _open(flags)
    parts = [f"Flags [{letters.replace('A', '.') if not isinstance(flags, Predicate) else _dotted(flags)}]"]
    for field, word in (
        ("tcp.seq", "seq"),
        ("tcp.ack", "ack"),
        ("tcp.window", "win"),
        ("tcp.urgent", "urg"),
        ("tcp.reserved", "reserved"),
    ):
        if field in outline:
            parts.append(f"{word} {show(outline[field])}")
    options = [_option(word, outline[field]) for field, word in _OPTIONS if field in outline]
    if "tcp.options" in outline:
        options.append(f"in the order {show(outline['tcp.options'])}")
    if outline.get("tcp.no_options") is True:
        options.append("none")
    elif outline.get("tcp.no_options") is False:
        options.append("some")
    if options:
        parts.append(f"options [{', '.join(options)}]")
    return ", ".join(parts) + _length(outline)


def _dotted(flags: Predicate) -> str:
    """Letters as `describe` has them, where they are letters only."""
    return flags.text.replace("A", ".") if set(flags.text) <= set("FSRPAUEC") else flags.text


def _option(word: str, wanted: Any) -> str:
    if wanted is None or wanted is False:
        return f"no {word}"
    if wanted is True or (isinstance(wanted, Predicate) and wanted.text == "present"):
        return word
    if word == "TS" and isinstance(wanted, tuple) and len(wanted) == 2:
        return f"TS val {show(wanted[0])} ecr {show(wanted[1])}"
    if word == "sack" and isinstance(wanted, tuple):
        return "sack " + " ".join(
            f"{show(block[0])}:{show(block[1])}"
            if isinstance(block, tuple) and len(block) == 2
            else show(block)
            for block in wanted
        )
    return f"{word} {show(wanted)}"
