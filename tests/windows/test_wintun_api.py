"""The binding of wintun.dll, against a library with the same functions, rings and errors."""

from __future__ import annotations

import logging
import pathlib
import random
import uuid
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.windows import fake
from tests.windows.fake import Fake
from tunstack.link.devices import wintun_api
from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.wintun_api import (
    ACCESS_DENIED,
    ALREADY_EXISTS,
    LARGEST,
    LEAST_CAPACITY,
    MOST_CAPACITY,
    Session,
    WintunError,
    guid_of,
    load,
)

NAME = "tunstack test"


def session_of(capacity: int = LEAST_CAPACITY) -> Iterator[Session]:
    adapter = fake.library().create(NAME, guid_of(NAME))
    session = adapter.start(capacity)
    yield session
    session.end()
    adapter.close()
    assert Fake(NAME).open == (0, 0)


session = pytest.fixture(session_of)


def packet(size: int, seed: int = 0) -> bytes:
    """Something that passes for IPv4."""
    return b"\x45" + random.Random(seed).randbytes(size - 1) if size else b""


@pytest.mark.parametrize(
    ("capacity", "size", "count"),
    [
        *((0x20000, size, count) for size, count in [(1, 16383), (20, 5461), (28, 4095), (1280, 102)]),
        *((0x20000, size, count) for size, count in [(1420, 92), (1500, 87), (9000, 14), (65535, 1)]),
        *((0x400000, size, count) for size, count in [(1420, 2945), (1500, 2788), (65535, 63)]),
    ],
)
def test_as_many_packets_fit_as_into_wintuns_rings(capacity: int, size: int, count: int) -> None:
    driver, data = Fake(NAME), packet(size)
    for session in session_of(capacity):
        sent = 0
        while session.send(data):
            sent += 1
        assert sent == count
        injected = 0
        while driver.inject(data):
            injected += 1
        assert injected == count
        assert session.receive(count + 1) == [data] * count


@settings(max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("inject"), st.integers(0, LARGEST)),
            st.tuples(st.just("inject"), st.integers(0, 1500)),
            st.tuples(st.just("receive"), st.integers(0, 100)),
            st.tuples(st.just("send"), st.integers(20, LARGEST)),
            st.tuples(st.just("send"), st.integers(20, 1500)),
            st.tuples(st.just("collect"), st.integers(0, 100)),
        ),
        max_size=60,
    )
)
def test_rings_are_queues(steps: list[tuple[str, int]]) -> None:
    driver = Fake(NAME)
    inward: deque[bytes] = deque()
    outward: deque[bytes] = deque()
    for session in session_of():
        for number, (step, size) in enumerate(steps):
            data = packet(size, number)
            if step == "inject" and driver.inject(data):
                inward.append(data)
            elif step == "receive":
                wanted = [inward.popleft() for _ in range(min(size, len(inward)))]
                assert session.receive(size) == wanted
            elif step == "send" and session.send(data):
                outward.append(data)
            elif step == "collect":
                for _ in range(size):
                    assert driver.collect() == (outward.popleft() if outward else None)


def test_what_is_received_is_a_copy(session: Session) -> None:
    driver = Fake(NAME)
    driver.inject(b"first")
    (first,) = session.receive(5)
    for _ in range(30_000):
        driver.inject(b"other")
        session.receive(5)
    assert first == b"first"


@pytest.mark.parametrize("size", [0, LARGEST + 1, 70_000])
def test_a_packet_that_wintun_would_not_survive_is_refused(session: Session, size: int) -> None:
    with pytest.raises(ValueError, match="1 to 65535"):
        session.send(bytes(size))


def test_an_adapter_that_goes_away(session: Session) -> None:
    driver = Fake(NAME)
    driver.inject(b"last")
    driver.terminate()
    for _ in range(2):
        with pytest.raises(DeviceClosed, match="has gone"):
            session.receive(5)
        with pytest.raises(DeviceClosed, match="has gone"):
            session.send(packet(20))


def test_a_broken_ring(session: Session) -> None:
    driver = Fake(NAME)
    driver.inject(b"fine")
    driver.corrupt()
    assert session.receive(5) == [b"fine"]
    with pytest.raises(WintunError, match="broken") as caught:
        session.receive(5)
    assert caught.value.code == 13


def test_a_session_that_has_ended_is_not_used() -> None:
    for session in session_of():
        session.end()
        with pytest.raises(DeviceClosed):
            session.receive(1)
        with pytest.raises(DeviceClosed):
            session.send(packet(20))
        with pytest.raises(DeviceClosed):
            _ = session.read_event


@pytest.mark.parametrize("capacity", [0, LEAST_CAPACITY // 2, LEAST_CAPACITY + 4, MOST_CAPACITY * 2])
def test_rings_that_the_driver_would_refuse(capacity: int) -> None:
    adapter = fake.library().create(NAME, guid_of(NAME))
    with pytest.raises(ValueError, match="power of two"):
        adapter.start(capacity)
    adapter.close()
    adapter.close()


def test_errors_say_what_to_do(session: Session) -> None:
    library, driver = fake.library(), Fake(NAME)
    for code, words in (
        (ACCESS_DENIED, "administrator"),
        (ALREADY_EXISTS, "wait some seconds"),
        (999, "error 999"),
    ):
        driver.fail(1, code)
        with pytest.raises(WintunError, match=words) as caught:
            library.create("other", guid_of("other"))
        assert caught.value.code == code and "'other'" in str(caught.value)
    with pytest.raises(WintunError, match="no adapter of that name"):
        library.open("other")
    for name in ("", "x" * 128, "a\0b"):
        with pytest.raises(WintunError):
            library.create(name, guid_of(name))
    opened = library.open(NAME)
    opened.close()
    assert driver.open == (1, 1)


def test_one_session_for_an_adapter() -> None:
    adapter = fake.library().create(NAME, guid_of(NAME))
    session = adapter.start(LEAST_CAPACITY)
    with pytest.raises(WintunError, match="somebody else uses it"):
        adapter.start(LEAST_CAPACITY)
    session.end()
    adapter.start(LEAST_CAPACITY).end()
    assert adapter.luid >> 48 == 53  # IF_TYPE_PROP_VIRTUAL
    adapter.close()


def test_the_driver_is_there_while_an_adapter_is() -> None:
    library = fake.library()
    assert library.driver_version is None
    adapter = library.create(NAME, guid_of(NAME))
    assert library.driver_version == (0, 14)
    adapter.close()


def test_what_wintun_logs(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("wintun-test")
    with caplog.at_level(logging.INFO, "wintun-test"):
        fake.library().log_to(logger)
        for level in (0, 1, 2, 7):
            Fake(NAME).log(level, f"level {level}")
    told = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert told == [
        (number, f"Wintun: level {level}")
        for level, number in ((0, logging.INFO), (1, logging.WARNING), (2, logging.ERROR), (7, logging.INFO))
    ]
    fake.library().log_to(logging.getLogger("tunstack"))


def test_an_adapter_keeps_its_identity() -> None:
    assert guid_of("a") == guid_of("a") and isinstance(guid_of("a"), uuid.UUID)
    assert len({guid_of("a"), guid_of("b"), guid_of("a", 1)}) == 3


def test_where_the_library_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv(wintun_api.VARIABLE, raising=False)
    package = tmp_path / "pytun_pmd3"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('it must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert wintun_api.find_library() == "wintun.dll"
    dll = package / "wintun" / "bin" / wintun_api._architecture() / "wintun.dll"
    dll.parent.mkdir(parents=True)
    dll.write_bytes(b"")
    assert wintun_api.find_library() == str(dll)
    monkeypatch.setenv(wintun_api.VARIABLE, str(tmp_path / "named.dll"))
    assert wintun_api.find_library() == str(tmp_path / "named.dll")
    assert wintun_api.find_library(tmp_path / "given.dll") == str(tmp_path / "given.dll")


def test_a_library_that_is_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(WintunError, match="set TUNSTACK_WINTUN to its path"):
        load(tmp_path / "nothing.dll")
