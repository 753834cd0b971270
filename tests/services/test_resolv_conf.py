"""resolv.conf: the syntax of the C library, any text at all, and a file that changes."""

from __future__ import annotations

import os
import pathlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.services.resolv_conf import (
    LOCAL_RESOLVER,
    MAX_ATTEMPTS,
    MAX_FIXED_NAMESERVERS,
    MAX_NAMESERVERS,
    MAX_NDOTS,
    MAX_SEARCH,
    MAX_TIMEOUT,
    FixedResolvers,
    Nameserver,
    ResolvConf,
    Resolvers,
    parse_nameserver,
    parse_resolv_conf,
)

STUB = Nameserver(bytes((127, 0, 0, 53)))

EXAMPLE = """\
# made by hand
; also a comment
domain gone.example
search corp.example lab.example
nameserver 127.0.0.53
nameserver\t2001:db8::53
nameserver fe80::1%eth0 # the router
options edns0 timeout:3 attempts:4
options ndots:2 rotate
"""


def test_example() -> None:
    assert parse_resolv_conf(EXAMPLE) == Resolvers(
        nameservers=(
            STUB,
            Nameserver(socket.inet_pton(socket.AF_INET6, "2001:db8::53")),
            Nameserver(socket.inet_pton(socket.AF_INET6, "fe80::1"), "eth0"),
        ),
        search=("corp.example", "lab.example"),
        timeout=3.0,
        attempts=4,
        ndots=2,
    )


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("nameserver 192.0.2.1", "192.0.2.1"),
        ("nameserver 192.0.2.1;why", "192.0.2.1"),
        ("nameserver 192.0.2.1 192.0.2.2", "192.0.2.1"),
        ("nameserver 127.1", "127.0.0.1"),
        ("nameserver 192.0.2.1\r", "192.0.2.1"),
        (" nameserver 192.0.2.1", None),
        ("Nameserver 192.0.2.1", None),
        ("nameserver192.0.2.1", None),
        ("nameserver", None),
        ("nameserver resolver.example", None),
        ("nameserver 192.0.2.1%eth0", None),
        ("nameserver 192.0.2.256", None),
        ("nameserver #192.0.2.1", None),
        ("nameserver 192.0.2.1\x00", None),
    ],
)
def test_nameserver_lines(line: str, address: str | None) -> None:
    expected = LOCAL_RESOLVER if address is None else Nameserver(socket.inet_aton(address))
    assert parse_resolv_conf(line).nameservers == (expected,)


def test_a_file_with_carriage_returns_means_the_same() -> None:
    text = EXAMPLE.replace("search", "\nsearch")
    assert parse_resolv_conf(text.replace("\n", "\r\n")) == parse_resolv_conf(EXAMPLE)


def test_only_the_first_three_nameservers_count() -> None:
    text = "".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6))
    assert [server.address[3] for server in parse_resolv_conf(text).nameservers] == [1, 2, 3]


def test_the_last_of_search_and_domain_counts() -> None:
    assert parse_resolv_conf("search a.example b.example\ndomain c.example d.example").search == (
        "c.example",
    )
    assert parse_resolv_conf("domain c.example\nsearch a.example ; b").search == ("a.example", "b")


def test_search_domains_cannot_smuggle_anything_into_another_file() -> None:
    assert parse_resolv_conf("search ok.example a\x1b[2Jb bad\x00 \N{SNOWMAN}.example").search == (
        "ok.example",
    )


@pytest.mark.parametrize(
    ("options", "timeout", "attempts", "ndots"),
    [
        ("timeout:0 attempts:0 ndots:0", 1.0, 1, 0),
        ("timeout:999999999999 attempts:77 ndots:99", MAX_TIMEOUT, MAX_ATTEMPTS, MAX_NDOTS),
        ("timeout:-1 attempts: ndots:x timeout", 5.0, 2, 1),
        ("timeout:\N{SUPERSCRIPT TWO} attempts:\N{ARABIC-INDIC DIGIT THREE}", 5.0, 2, 1),
    ],
)
def test_options(options: str, timeout: float, attempts: int, ndots: int) -> None:
    found = parse_resolv_conf(f"options {options}")
    assert (found.timeout, found.attempts, found.ndots) == (timeout, attempts, ndots)


LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.builds(
            " ".join,
            st.tuples(
                st.sampled_from(["nameserver", "search", "domain", "options"]),
                st.one_of(
                    st.ip_addresses().map(str),
                    st.text(max_size=20),
                    st.sampled_from(["timeout:9", "ndots:77", "a.example"]),
                ),
            ),
        ),
    ),
    max_size=20,
)


@given(LINES.map("\n".join))
def test_any_text_has_a_meaning_within_bounds(text: str) -> None:
    found = parse_resolv_conf(text)
    assert 1 <= len(found.nameservers) <= MAX_NAMESERVERS
    assert all(len(server.address) in (4, 16) and server.port == 53 for server in found.nameservers)
    assert len(found.search) <= MAX_SEARCH
    assert all(domain.isprintable() and " " not in domain for domain in found.search)
    assert 1 <= found.timeout <= MAX_TIMEOUT
    assert 1 <= found.attempts <= MAX_ATTEMPTS
    assert 0 <= found.ndots <= MAX_NDOTS


NAMESERVERS = st.one_of(
    st.builds(Nameserver, st.binary(min_size=4, max_size=4)),
    st.builds(
        Nameserver, st.binary(min_size=16, max_size=16), st.sampled_from(["", "eth0", "2", "wlp0s20f3.7"])
    ),
)
DOMAIN = st.from_regex(r"[a-z0-9_-]{1,10}(\.[a-z0-9-]{1,10}){0,3}", fullmatch=True)
RESOLVERS = st.builds(
    Resolvers,
    nameservers=st.lists(NAMESERVERS, min_size=1, max_size=MAX_NAMESERVERS).map(tuple),
    search=st.lists(DOMAIN, max_size=6).map(tuple),
    timeout=st.integers(1, MAX_TIMEOUT).map(float),
    attempts=st.integers(1, MAX_ATTEMPTS),
    ndots=st.integers(0, MAX_NDOTS),
)


@given(RESOLVERS)
def test_round_trip(resolvers: Resolvers) -> None:
    lines = []
    for server in resolvers.nameservers:
        family = socket.AF_INET if len(server.address) == 4 else socket.AF_INET6
        scope = f"%{server.scope}" if server.scope else ""
        lines.append(f"nameserver {socket.inet_ntop(family, server.address)}{scope}")
    if resolvers.search:
        lines.append("search " + " ".join(resolvers.search))
    lines.append(
        f"options timeout:{resolvers.timeout:.0f} attempts:{resolvers.attempts} ndots:{resolvers.ndots}"
    )
    assert parse_resolv_conf("\n".join(lines)) == resolvers


def test_a_change_is_seen_within_a_second_and_not_looked_for_more_often(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    conf = ResolvConf(str(path))
    first = conf.current(100.0).nameservers
    assert first == (Nameserver(b"\xc0\x00\x02\x01"),)
    # Replaced by a rename, as network managers do, and of equal size.
    other = tmp_path / "new"
    other.write_text("nameserver 192.0.2.2\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    assert conf.current(100.9).nameservers == first
    assert conf.current(101.0).nameservers == (Nameserver(b"\xc0\x00\x02\x02"),)
    # Rewritten in place.
    path.write_text("nameserver 192.0.2.33\n")
    assert conf.current(101.5).nameservers == (Nameserver(b"\xc0\x00\x02\x02"),)
    assert conf.current(102.5).nameservers == (Nameserver(b"\xc0\x00\x02\x21"),)


def test_an_unchanged_file_is_parsed_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(EXAMPLE)
    conf = ResolvConf(str(path))
    assert conf.current(0.0) is conf.current(5.0)


def test_a_missing_or_broken_file_leaves_what_was_known(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "resolv.conf"
    conf = ResolvConf(str(path))
    assert conf.current(0.0).nameservers == (LOCAL_RESOLVER,)
    path.write_text("nameserver 192.0.2.1\n")
    known = conf.current(1.0).nameservers
    assert known == (Nameserver(b"\xc0\x00\x02\x01"),)
    path.unlink()
    assert conf.current(2.0).nameservers == known
    path.mkdir()
    assert conf.current(3.0).nameservers == known
    path.rmdir()
    os.mkfifo(path)
    assert conf.current(4.0).nameservers == known
    path.unlink()
    path.symlink_to(path)
    assert conf.current(5.0).nameservers == known
    path.unlink()
    path.write_bytes(b"\xff\xfe\x00nameserver\nnameserver 192.0.2.9\n\x80" * 10)
    assert conf.current(6.0).nameservers[0] == Nameserver(b"\xc0\x00\x02\x09")


def test_a_path_that_no_system_takes_is_a_missing_file() -> None:
    assert ResolvConf("/tmp/\x00").current(0.0).nameservers == (LOCAL_RESOLVER,)


def test_fixed_resolvers() -> None:
    fixed = FixedResolvers([b"\x7f\x00\x00\x35", Nameserver(b"\x01" * 16, "eth0", 5353)], timeout=1.0)
    assert fixed.current(0.0) is fixed.current(1e9)
    assert fixed.current(0.0).nameservers == (STUB, Nameserver(b"\x01" * 16, "eth0", 5353))
    with pytest.raises(ValueError, match="between 1 and"):
        FixedResolvers([])
    with pytest.raises(ValueError, match="between 1 and"):
        FixedResolvers([b"\x01" * 4] * (MAX_FIXED_NAMESERVERS + 1))


def test_a_nameserver_with_a_port_of_its_own() -> None:
    assert parse_nameserver("::1", 5353) == Nameserver(bytes(15) + b"\x01", "", 5353)
    assert parse_nameserver("localhost") is None
