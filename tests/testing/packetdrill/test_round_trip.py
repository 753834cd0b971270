"""Properties of the language: printing and parsing are inverse; any text is a script or an error."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.testing.packetdrill import trees
from tunstack.testing.packetdrill import ScriptError, format_script, parse
from tunstack.testing.packetdrill.language.lexer import Kind, tokenize
from tunstack.testing.packetdrill.language.preprocess import preprocess


@given(trees.scripts)
def test_what_is_printed_parses_to_the_same_tree(script) -> None:
    text = format_script(script)
    assert parse(text) == script
    assert format_script(parse(text)) == text


FRAGMENTS = st.sampled_from(
    [
        *'<>+*~.,:;()[]{}=|-"`%#/\\@',
        *(
            "0",
            "1",
            "0x1f",
            ".5",
            "0.1",
            "...",
            "socket",
            "S",
            "P.",
            "ack",
            "win",
            "udp",
            "icmp",
            "mss",
            "sack",
        ),
        *("TS val", "ecr", "\n", " ", "//", "/*", "*/", "%{", "}%", "--a=b", "--", "#ifdef X\n", "#endif\n"),
        *("+0 < . 1:1(0) ack 1 win 2\n", "0 close(3) = 0\n", "= -1 EAGAIN (no)", "192.0.2.1", "é", "\x00"),
    ]
)


def check_total(text: str) -> None:
    """`text` is a script, or an error whose position is one of the text."""
    try:
        parse(text)
    except ScriptError as error:
        lines = text.split("\n")
        assert 1 <= error.position.line <= len(lines)
        assert 1 <= error.position.column <= len(lines[error.position.line - 1]) + 1
        assert error.message
        assert re.fullmatch(r"\d+:\d+: .+", str(error), re.S)


@given(st.text())
@example('0 a("\\x4\n')
def test_any_text_is_a_script_or_an_error_with_its_place(text) -> None:
    check_total(text)


@given(st.lists(FRAGMENTS, max_size=30).map("".join))
@settings(max_examples=300)
def test_any_pieces_of_scripts_are_a_script_or_an_error_with_its_place(text) -> None:
    check_total(text)


@given(trees.scripts, st.data())
def test_a_script_with_a_hole_is_a_script_or_an_error_with_its_place(script, data) -> None:
    text = format_script(script)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    check_total(text[:start] + text[end:])


@given(st.text())
def test_tokens_stand_where_they_say(text) -> None:
    try:
        tokens = tokenize(text)
    except ScriptError:
        return
    assert tokens[-1].kind is Kind.END
    assert [token.position for token in tokens] == sorted(token.position for token in tokens)
    lines = text.split("\n")
    for token in tokens[:-1]:
        if token.kind in (Kind.WORD, Kind.INTEGER, Kind.FLOAT, Kind.MARK, Kind.HEX, Kind.ADDRESS):
            place = token.position
            assert lines[place.line - 1][place.column - 1 :].startswith(token.text)


@given(
    st.lists(FRAGMENTS | st.sampled_from(["#define A 1\n", "#else\n", "#ifndef B\n", "#undef A\n"])).map(
        "".join
    )
)
def test_the_preprocessor_keeps_lines_in_their_place(text) -> None:
    try:
        plain, _ = preprocess(text)
    except ScriptError:
        return
    before, after = text.split("\n"), plain.split("\n")
    assert len(before) == len(after)
    assert all(new in ("", old) for old, new in zip(before, after, strict=True))
