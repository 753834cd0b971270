"""The table of own names."""

from __future__ import annotations

import ipaddress

import dns.name
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.services.local_names import (
    GATEWAY_NAME,
    HOST_NAME,
    MAX_ADDRESSES,
    LocalName,
    LocalNames,
    parse_name,
    reverse_name,
)

GATEWAY = bytes((10, 0, 2, 2))
ZONE = (b"tunstack", b"internal")


def test_names_are_found_and_others_are_not_ours() -> None:
    names = LocalNames({GATEWAY_NAME: [GATEWAY], HOST_NAME: [], "Db.Example.": [b"\x0a\x01\x01\x01"]})
    assert names.find((b"gateway", *ZONE)) == LocalName(True, (GATEWAY,), (), ZONE)
    assert names.find((b"host", *ZONE)) == LocalName(True, (), (), ZONE)
    assert names.find((b"db", b"example")) == LocalName(True, (b"\x0a\x01\x01\x01",))
    assert names.find((b"2", b"2", b"0", b"10", b"in-addr", b"arpa")) == LocalName(
        True, (), (b"gateway", *ZONE)
    )
    assert names.find((b"nobody", *ZONE)) == LocalName(False, zone=ZONE)
    assert names.find(ZONE) == LocalName(True, zone=ZONE)
    assert names.find((b"example",)) is None
    assert names.find((b"internal",)) is None
    assert names.find((b"xtunstack", b"internal")) is None
    assert names.find(()) is None


def test_a_name_above_another_exists() -> None:
    names = LocalNames({"a.b.c.tunstack.internal": [GATEWAY]})
    assert [(found := names.find((*above, *ZONE))) and found.exists for above in ((b"b", b"c"), (b"c",))] == [
        True,
        True,
    ]
    assert (found := names.find((b"a", b"c", *ZONE))) and not found.exists


def test_the_first_name_of_an_address_is_its_reverse() -> None:
    names = LocalNames({GATEWAY_NAME: [GATEWAY], HOST_NAME: [GATEWAY]})
    found = names.find(reverse_name(GATEWAY))
    assert found and found.pointer == (b"gateway", *ZONE)


def test_names_that_differ_in_case_are_one() -> None:
    names = LocalNames({"DB.example": [GATEWAY], "db.EXAMPLE.": [bytes(16), GATEWAY]})
    assert names.find((b"db", b"example")) == LocalName(True, (GATEWAY, bytes(16)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "a b",
        "a\n",
        "a\x7f",
        "x\N{ROMAN NUMERAL ONE}" * 70,
    ],
)
def test_what_is_no_name_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        parse_name(text)


def test_bad_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or 16 bytes"):
        LocalNames({"a": [b"\x01\x02\x03"]})
    with pytest.raises(ValueError, match="at most"):
        LocalNames({"a": [n.to_bytes(4, "big") for n in range(MAX_ADDRESSES + 1)]})


@given(st.from_regex(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9-]{1,20}){0,4}\.?", fullmatch=True))
def test_names_are_taken_apart_as_dnspython_does(text: str) -> None:
    assert (*parse_name(text), b"") == dns.name.from_text(text).canonicalize().labels


def test_other_scripts_are_encoded() -> None:
    assert parse_name("B\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example") == (
        b"xn--bcher-kva",
        b"example",
    )


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))
def test_reverse_names_are_those_of_dnspython(address: bytes) -> None:
    expected = dns.reversename.from_address(str(ipaddress.ip_address(address)))
    # dnspython turns v4-mapped addresses into in-addr.arpa; RFC 3596 knows no such exception.
    if not (len(address) == 16 and address[:12] == bytes(10) + b"\xff\xff"):
        assert (*reverse_name(address), b"") == expected.labels
