"""Names of ICMP types and codes in scripts, by version of IP (RFC 792, RFC 1812, RFC 4443)."""

from __future__ import annotations

TYPES: dict[int, dict[str, int]] = {
    4: {
        "echo_reply": 0,
        "unreachable": 3,
        "source_quench": 4,
        "redirect": 5,
        "echo_request": 8,
        "time_exceeded": 11,
        "parameter_problem": 12,
    },
    6: {
        "unreachable": 1,
        "packet_too_big": 2,
        "time_exceeded": 3,
        "parameter_problem": 4,
        "echo_request": 128,
        "echo_reply": 129,
    },
}

CODES: dict[int, dict[int, dict[str, int]]] = {
    4: {
        3: {
            "net_unreachable": 0,
            "host_unreachable": 1,
            "protocol_unreachable": 2,
            "port_unreachable": 3,
            "frag_needed": 4,
            "source_route_failed": 5,
            "net_unknown": 6,
            "host_unknown": 7,
            "source_host_isolated": 8,
            "net_prohibited": 9,
            "host_prohibited": 10,
            "net_unreachable_for_tos": 11,
            "host_unreachable_for_tos": 12,
            "packet_filtered": 13,
            "precedence_violation": 14,
            "precedence_cutoff": 15,
        },
        11: {"ttl_exceeded": 0, "reassembly_exceeded": 1},
    },
    6: {
        1: {
            "no_route": 0,
            "admin_prohibited": 1,
            "not_neighbour": 2,
            "addr_unreachable": 3,
            "address_unreachable": 3,
            "port_unreachable": 4,
        },
        3: {"exceed_hop_limit": 0, "exceed_reassembly_time": 1},
        4: {"bad_header_field": 0, "unknown_next_header": 1, "unknown_option": 2},
    },
}
"""By version and type: the names of the codes."""

TOO_BIG = {4: (3, 4), 6: (2, 0)}
"""By version: type and code of the message that carries an MTU."""


ECHOES = {4: frozenset({0, 8}), 6: frozenset({128, 129})}
"""By version: types of messages with an identifier."""
QUERIES = {4: frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18}), 6: frozenset(range(128, 256))}
"""By version: types that are no errors, and so quote nothing."""


def number_of(version: int, kind: str, code: str | None) -> tuple[int, int | None]:
    """Type and code (None if not said) of the names in a script; `type 3`, `code 4` stand for themselves.

    Raises:
        KeyError: with the name that is not known.
    """
    number = _number(kind, "type", TYPES[version])
    if code is None:
        return number, None
    return number, _number(code, "code", CODES[version].get(number, {}))


def _number(name: str, prefix: str, names: dict[str, int]) -> int:
    if name.startswith(prefix + " "):
        return int(name[len(prefix) + 1 :])
    return names[name]


def names_of(version: int, kind: int, code: int) -> tuple[str, str | None]:
    """The words of a script for a type and a code."""
    name = next((name for name, number in TYPES[version].items() if number == kind), f"type {kind}")
    codes = CODES[version].get(kind, {})
    if not codes and not code:
        return name, None
    return name, next((word for word, number in codes.items() if number == code), f"code {code}")
