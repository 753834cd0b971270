"""Scenarios: what their lines mean, and what is said of lines that mean nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.link.shaping.profiles import PROFILES
from tunstack.link.shaping.scenario import Scenario, Step
from tunstack.link.shaping.spec import ShapeError, ShapeSpec


def test_what_the_lines_mean() -> None:
    lossy = ShapeSpec(loss=0.05)
    text = """
        # the weather gets worse
        0s      up delay 10ms      # as a rule
        10s     BOTH loss 5%
        30s     link down
        30s     down none
        35s     link up
        1500ms
    """
    with pytest.raises(ShapeError, match="line 8: it is before the line above"):
        Scenario.parse(text)
    assert Scenario.parse(text.replace("1500ms", "60s repeat")) == Scenario(
        (
            Step(at=0.0, shapes={"up": ShapeSpec(delay=0.01)}),
            Step(at=10.0, shapes={"up": lossy, "down": lossy}),
            Step(at=30.0, link=False),
            Step(at=30.0, shapes={"down": None}),
            Step(at=35.0, link=True),
        ),
        60.0,
    )
    assert Scenario.parse("1s link up\n2s end") == Scenario((Step(at=1.0, link=True),))
    (step,) = Scenario.parse("5s profile LTE").steps
    assert step.shapes == {way: ShapeSpec.parse(getattr(PROFILES["lte"], way)) for way in ("up", "down")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "nothing happens in this scenario"),
        ("5s end", "nothing happens in this scenario"),
        ("5 link up", "line 1: the time: '5' has no unit"),
        ("5s", "line 1: behind the time comes 'up', 'down' or 'both'"),
        ("5s sideways loss 1%", "line 1: behind the time comes 'up', 'down' or 'both'"),
        ("5s link", "line 1: behind the time comes"),
        ("5s link broken", "line 1: behind the time comes"),
        ("5s up", "line 1: nothing is ordered"),
        ("5s up dealy 1ms", "line 1: unknown word 'dealy'"),
        ("5s profile nope", "line 1: unknown profile 'nope'"),
        ("5s link up\n6s end\n7s link up", "line 3: nothing comes behind the end"),
        ("0s link up\n0s repeat", "line 2: a repetition takes more than 0s"),
        ("0s link up\n" * 100_001, "there are more than 100000 lines"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        Scenario.parse(text)


WORDS = "5s 0s 10ms x up down both link end repeat profile lte none loss 5% delay #"
TOKENS = st.sampled_from(WORDS.split()) | st.just("\n")


@given(st.lists(TOKENS, max_size=20).map(" ".join))
def test_any_text_is_a_scenario_or_one_sentence(text: str) -> None:
    try:
        scenario = Scenario.parse(text)
    except ShapeError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert scenario.steps
        assert [step.at for step in scenario.steps] == sorted(step.at for step in scenario.steps)
