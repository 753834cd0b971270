"""The envelope: what makes an answer, and truncation, with dnspython as the second opinion."""

from __future__ import annotations

from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.services import dns_wire

QNAME = "WWW.Example.com."


def make_query(**options: Any) -> tuple[bytes, int]:
    wire = dns.message.make_query(QNAME, "A", **options).to_wire()
    assert wire is not None
    return wire, 12 + len(QNAME) + 1 + 4


def response(records: int, query: bytes, *, edns: bool = False) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(query))
    for n in range(records):
        name = f"n{n}.example.com." if n % 3 else QNAME
        message.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", f"{n} mail{n}.example.com."))
    message.authority.append(dns.rrset.from_text("example.com.", 60, "IN", "NS", "ns.example.com."))
    message.additional.append(dns.rrset.from_text("ns.example.com.", 60, "IN", "A", "192.0.2.1"))
    if edns:
        message.use_edns(0, payload=4096)
    wire = message.to_wire(max_size=65535)
    assert wire is not None
    return wire


@given(st.integers(0, 80), st.integers(512, 3000), st.booleans(), st.booleans())
def test_truncation_keeps_a_prefix_of_the_answers(records: int, limit: int, edns: bool, dnssec: bool) -> None:
    query, _ = make_query()
    whole = response(records, query, edns=edns)
    opt = dns_wire.opt_record(dnssec) if edns else b""
    cut = dns_wire.truncate(whole, limit, opt)
    assert len(cut) <= limit
    before, after = (
        dns.message.from_wire(whole, one_rr_per_rrset=True),
        dns.message.from_wire(cut, one_rr_per_rrset=True),
    )
    assert after.flags == before.flags | dns.flags.TC
    assert (after.id, after.question, after.rcode()) == (before.id, before.question, before.rcode())
    assert after.answer == before.answer[: len(after.answer)]
    assert not after.authority
    assert not after.additional
    if edns:
        assert (after.edns, after.payload) == (0, dns_wire.OWN_UDP_SIZE)
        assert bool(after.ednsflags & dns.flags.DO) == dnssec
    else:
        assert after.edns == -1
    # It keeps as many as fit: no record here is longer than 80 bytes.
    assert len(after.answer) == records or len(cut) > limit - 80


@given(
    st.binary(min_size=12, max_size=700),
    st.integers(512, 600),
    st.sampled_from([b"", dns_wire.opt_record(True)]),
)
def test_truncation_of_any_bytes_is_bounded(message: bytes, limit: int, opt: bytes) -> None:
    cut = dns_wire.truncate(message, limit, opt)
    assert 12 <= len(cut) <= limit
    assert dns_wire.is_truncated(cut)
    assert cut.endswith(opt)


def hostile_counts(message: bytes, position: int, count: int) -> bytes:
    return message[:position] + count.to_bytes(2, "big") + message[position + 2 :]


@given(st.integers(0, 30), st.sampled_from([4, 6, 8, 10]), st.integers(0, 65535), st.integers(0, 900))
def test_truncation_of_a_lying_message_still_parses(
    records: int, position: int, count: int, end: int
) -> None:
    query, _ = make_query()
    lying = hostile_counts(response(records, query)[: max(end, 12)], position, count)
    cut = dns_wire.truncate(lying, 512)
    assert len(dns.message.from_wire(cut, question_only=True).question) <= 1
    assert dns_wire.counts(cut)[1] <= 40


def test_an_answer_matches_by_id_question_and_kind() -> None:
    query, end = make_query(id=0x1234)
    good = response(1, query)
    assert dns_wire.is_answer(good, query, end)
    assert dns_wire.is_answer(good.replace(b"\x03WWW\x07Example", b"\x03www\x07eXAMPLE"), query, end)
    other_id = b"\x12\x35" + good[2:]
    not_response = good[:2] + bytes((good[2] & 0x7F,)) + good[3:]
    update = good[:2] + bytes((good[2] | dns.opcode.UPDATE << 3,)) + good[3:]
    other_name = good.replace(b"\x03WWW", b"\x03WWX")
    shifted_name = good.replace(b"\x03WWW", b"\x02WWW")
    other_type = good[: end - 3] + b"\x1c" + good[end - 2 :]
    other_class = good[: end - 1] + b"\x03" + good[end:]
    two_questions = hostile_counts(good, 4, 2)
    no_question = hostile_counts(good, 4, 0)
    for bad in (
        other_id, not_response, update, other_name, shifted_name, other_type, other_class,
        two_questions, no_question, good[: end - 1], good[:12], good[:11], b"",
    ):  # fmt: skip
        assert not dns_wire.is_answer(bad, query, end), bad


def test_case_is_no_excuse_for_the_type() -> None:
    # HTTPS is 0x41; that and 0x61 are one letter in two cases.
    wire = dns.message.make_query(QNAME, dns.rdatatype.HTTPS).to_wire()
    assert wire is not None
    end = 12 + len(QNAME) + 1 + 4
    answer = bytearray(response(0, wire))
    assert dns_wire.is_answer(bytes(answer), wire, end)
    answer[end - 3] = 0x61
    assert not dns_wire.is_answer(bytes(answer), wire, end)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
def test_a_refusal_may_come_without_the_question(code: int) -> None:
    query, end = make_query()
    bare = query[:2] + bytes((0x81, 0x80 | code)) + bytes(8)
    assert dns_wire.is_answer(bare, query, end) == (code in (1, 2, 4, 5))


@given(st.binary(min_size=12, max_size=40), st.integers(0, 15))
def test_an_error_reply_is_a_header_that_dnspython_reads(query: bytes, code: int) -> None:
    reply = dns.message.from_wire(dns_wire.error_reply(query, code))
    assert reply.id == int.from_bytes(query[:2], "big")
    assert reply.rcode() == code
    assert reply.opcode() == dns_wire.opcode(query)
    assert reply.flags & dns.flags.QR
    assert bool(reply.flags & dns.flags.RD) == bool(query[2] & 1)
    assert not (reply.question or reply.answer or reply.authority or reply.additional)
