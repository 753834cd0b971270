"""The control socket and the API behind it: who may open it, what it does, and what it makes of nonsense."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import stat
from collections.abc import AsyncIterator
from typing import Any

import h11
import pytest
import trio

from tunstack import Gateway, open_gateway
from tunstack.api import acceptor, unix_sockets
from tunstack.api.acceptor import Acceptor
from tunstack.api.client import ApiError, ask
from tunstack.api.control import control_socket, running
from tunstack.api.unix_sockets import runtime_directory
from tunstack.packet import Packet

SHAPING = "/v1/guests/1/shaping"


@pytest.fixture(autouse=True)
def runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory of the sockets, of this test alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "tunstack"


class Client:
    """Asks in threads, as the gateway is in this one."""

    def __init__(self, gateway: Gateway, path: pathlib.Path) -> None:
        self.gateway = gateway
        self.path = path

    async def __call__(self, method: str, target: str = SHAPING, body: object = None) -> Any:
        return await trio.to_thread.run_sync(ask, self.path, method, target, body)

    async def raw(self, data: bytes, *, eof: bool = True) -> bytes:
        """What comes back for `data` until the end."""
        stream = await trio.open_unix_socket(str(self.path))
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                if eof:
                    await stream.send_eof()
            received = b""
            with contextlib.suppress(trio.BrokenResourceError):
                while chunk := await stream.receive_some(65536):
                    received += chunk
        return received


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_gateway() as gateway, control_socket(gateway) as path:
        assert path is not None
        yield Client(gateway, path)


async def test_the_socket_is_this_users_alone_and_goes_with_the_gateway(runtime: pathlib.Path) -> None:
    async with open_gateway() as gateway:
        async with control_socket(gateway) as path:
            assert path == runtime / f"{os.getpid()}.sock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
            assert running() == {os.getpid(): path}
        assert not path.exists()
        assert running() == {}


async def test_what_the_block_raises_leaves_it_as_it_is(runtime: pathlib.Path) -> None:
    async with open_gateway() as gateway:
        with pytest.raises(KeyError, match="mine"):
            async with control_socket(gateway):
                raise KeyError("mine")
        assert list(runtime.iterdir()) == []


async def test_what_the_dead_have_left_is_removed_and_what_is_no_socket_of_ours_is_not(
    runtime: pathlib.Path,
) -> None:
    runtime.mkdir(mode=0o700)
    stale, other = runtime / "1.sock", runtime / "notes.txt"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    other.write_text("keep")
    ours = runtime / f"{os.getpid()}.sock"
    ours.write_text("of a process that had our number")
    async with open_gateway() as gateway, control_socket(gateway) as path:
        assert path == ours
        assert sorted(runtime.iterdir()) == sorted([ours, other])


@pytest.mark.parametrize("what", ["open", "link", "file", "missing"])
async def test_a_directory_that_is_not_ours_alone_is_not_used(
    runtime: pathlib.Path, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "open":
        runtime.mkdir()
        runtime.chmod(0o755)
    elif what == "link":
        (runtime.parent / "elsewhere").mkdir(mode=0o700)
        runtime.symlink_to("elsewhere")
    elif what == "file":
        runtime.write_text("")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "missing"))
    caplog.set_level("INFO")
    async with open_gateway() as gateway, control_socket(gateway) as path:
        assert path is None
    assert "no control socket" in caplog.text


async def test_a_path_of_ones_own(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "here.sock"
    async with open_gateway() as gateway:
        async with control_socket(gateway, path) as chosen:
            assert chosen == path
            assert await trio.to_thread.run_sync(ask, path, "GET", SHAPING)
        assert not path.exists()
        path.write_text("precious")
        with pytest.raises(OSError, match="in use"):
            async with control_socket(gateway, path):
                pass
    assert path.read_text() == "precious"


def test_where_the_directory_is_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    for writable, uid, expected in (
        ({"/run/user/7", "/run"}, 7, "/run/user/7/tunstack"),
        ({"/run"}, 0, "/run/tunstack"),
        (set(), 7, "/tmp/tunstack-7"),
    ):
        monkeypatch.setattr(os, "getuid", lambda uid=uid: uid)
        monkeypatch.setattr(os, "access", lambda path, mode, writable=writable: path in writable)
        assert str(runtime_directory()) == expected


async def test_shaping_is_told_and_changed(client: Client) -> None:
    assert await client("GET", "/v1/guests") == [await client("GET", "/v1/guests/1")]
    assert await client("GET", "/v1/guests/1") == {
        "id": "1",
        "addresses": ["10.0.2.100", "fd00::100"],
        "attached": False,
    }
    before = await client("GET")
    assert (before["up"], before["down"], before["link"], before["stages"]) == (None, None, "up", {})
    after = await client("PATCH", body={"up": "delay 50ms loss 1%"})
    assert (after["up"], after["down"]) == ("delay 50ms loss 1%", None)
    assert [stage["stage"] for stage in after["stages"]["up"]] == ["loss", "delay"]
    assert [str(spec) for spec in client.gateway.shaping.values()] == ["delay 50ms loss 1%", "None"]
    after = await client("PATCH", body={"profile": "lte", "down": None, "link": "down"})
    assert (after["up"], after["down"], after["link"]) == ("delay 35ms rate 12mbit", None, "down")
    assert not client.gateway.is_link_up
    after = await client("PATCH", body={"up": None, "link": "up"})
    assert (after["up"], after["stages"], after["link"]) == (None, {}, "up")
    assert await client("PATCH", body={}) == after


async def test_statistics_tell_what_was_dropped_and_why(client: Client) -> None:
    await client("PATCH", body={"up": "loss pattern 01 quota 100b delay 0s rate 1mbit"})
    shaper = client.gateway.engine.shaper
    assert shaper is not None and shaper.up is not None
    for _ in range(4):
        shaper.up.push(Packet(bytes(60)), trio.current_time())
    loss, quota, rate = (await client("GET"))["stages"]["up"]
    assert (loss["stage"], loss["received"], loss["sent"]) == ("loss", 4, 2)
    assert loss["dropped"] == {"shaping-loss": 2}
    assert quota["dropped"] == {"shaping-quota": 1}
    assert (rate["queued"], rate["queued_bytes"]) == (1, 60)


async def test_a_scenario_is_followed_until_it_is_stopped(client: Client) -> None:
    scenario = "0s up loss 1%\n10ms up loss 2%\n20ms link down\n30ms repeat"
    after = await client("PATCH", body={"scenario": scenario})
    assert after["scenario"]
    seen: set[object] = set()
    with trio.fail_after(20):
        while not seen >= {("loss 1%", "down"), ("loss 2%", "down")}:
            now = await client("GET")
            seen.add((now["up"], now["link"]))
    # Another one takes its place.
    after = await client("PATCH", body={"scenario": "0s both none\n0s link up\n3600s up loss 3%"})
    assert after["scenario"]
    with trio.fail_after(20):
        while (await client("GET"))["link"] != "up":
            pass
    assert not (await client("PATCH", body={"scenario": None}))["scenario"]


@pytest.mark.parametrize(
    ("method", "target", "body", "sentence"),
    [
        ("GET", "/v2", None, "GET /v2: Not Found"),
        ("GET", "/v1/guests/9/shaping", None, "there is no such guest; there is 1"),
        ("DELETE", SHAPING, None, "Method Not Allowed"),
        ("PATCH", SHAPING, {"up": "dealy 5ms"}, "unknown word 'dealy'"),
        ("PATCH", SHAPING, {"up": 5}, "Expected `str | null`, got `int`"),
        ("PATCH", SHAPING, {"sideways": "delay 5ms"}, "unknown field `sideways`"),
        ("PATCH", SHAPING, {"profile": "nope"}, "unknown profile 'nope'"),
        ("PATCH", SHAPING, {"link": "broken"}, "Invalid enum value 'broken'"),
        ("PATCH", SHAPING, {"scenario": "nonsense"}, "line 1:"),
        ("PATCH", SHAPING, {"up": "trace /no/such/file"}, "trace: '/no/such/file': No such file"),
        ("PATCH", SHAPING, ["up"], "Expected `object`, got `array`"),
        ("PATCH", SHAPING, {"scenario": "x" * (1 << 20)}, "the body has more than 1048576 bytes"),
    ],
)
async def test_what_cannot_be_is_refused_with_a_sentence_and_changes_nothing(
    client: Client, method: str, target: str, body: object, sentence: str
) -> None:
    await client("PATCH", body={"down": "delay 1ms"})
    if isinstance(body, dict):
        body = {"down": "delay 9ms", **body}
    with pytest.raises(ApiError) as caught:
        await client(method, target, body)
    assert sentence in str(caught.value)
    assert str(client.gateway.shaping["down"]) == "delay 1ms"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"],
)
async def test_nonsense_gets_an_error_or_the_end_and_the_next_is_served(client: Client, data: bytes) -> None:
    answer = await client.raw(data)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert await client("GET")


async def test_a_head_without_end_is_not_kept(client: Client) -> None:
    answer = await client.raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000, eof=False)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert await client("GET")


async def test_who_says_nothing_is_left_after_a_while(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "HEAD_TIMEOUT", 0.05)
    with trio.fail_after(5):
        assert await client.raw(b"GET / HTTP/1.1\r\n", eof=False) == b""


async def test_many_clients_at_once(client: Client) -> None:
    answers: list[object] = []

    async def one() -> None:
        answers.append((await client("GET"))["link"])

    async with trio.open_nursery() as nursery:
        for _ in range(acceptor.MOST + 20):
            nursery.start_soon(one)
    assert answers == ["up"] * (acceptor.MOST + 20)


async def test_a_path_that_is_claimed_is_taken_over_with_what_came_behind_the_head(
    tmp_path: pathlib.Path,
) -> None:
    """The bytes behind the head belong to who takes over; other paths go to the application."""

    async def take(stream: trio.SocketStream, request: h11.Request, behind: bytes) -> None:
        await stream.send_all(bytes(request.method) + b" " + behind)
        while chunk := await stream.receive_some(100):
            await stream.send_all(chunk.upper())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = json.dumps(scope["path"]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    path = tmp_path / "sock"
    listener = unix_sockets.listen(path)
    server = Acceptor(lambda: application)
    server.takeovers[b"/connect"] = take
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve, listener)
        for cut in (5, 30, 51, 60):
            async with await trio.open_unix_socket(str(path)) as stream:
                data = b"CONNECT /connect?port=5 HTTP/1.1\r\nHost: x\r\n\r\nbehind"
                await stream.send_all(data[:cut])
                await trio.sleep(0.01)
                await stream.send_all(data[cut:] + b" it")
                await stream.send_eof()
                answer = b""
                while chunk := await stream.receive_some(100):
                    answer += chunk
                assert answer.lower() == b"connect behind it"
        assert await trio.to_thread.run_sync(ask, path, "GET", "/other?connect") == "/other"
        nursery.cancel_scope.cancel()


async def test_routes_and_forwards(client: Client, tmp_path: pathlib.Path) -> None:
    route, listener = "10.0.2.50:80=unix:///run/web", f"unix://{tmp_path}/web"
    forward = f"{listener}=tcp://10.0.2.100:80"
    assert await client("GET", "/v1/routes") == await client("GET", "/v1/forwards") == []
    assert await client("POST", "/v1/routes", {"route": route}) == {"route": route}
    secret = "0.0.0.0/0=socks5://user:secret@127.0.0.1:1080"
    shown = secret.replace("user:secret@", "")
    assert await client("POST", "/v1/routes", {"route": secret}) == {"route": shown}
    assert await client("GET", "/v1/routes") == [{"route": route}, {"route": shown}]
    inside = bytes((10, 0, 2, 50))
    assert inside in client.gateway.stack.own_addresses
    assert await client("DELETE", "/v1/routes", {"route": shown}) == [{"route": route}]
    assert await client("DELETE", "/v1/routes", {"route": route}) == []
    assert inside not in client.gateway.stack.own_addresses
    assert await client("POST", "/v1/forwards", {"forward": forward}) == {"forward": forward}
    assert await client("GET", "/v1/forwards") == [{"forward": forward}]
    assert (tmp_path / "web").exists()
    assert await client("DELETE", "/v1/forwards", {"forward": forward}) == []
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("method", "what", "text", "complaint"),
    [
        ("POST", "route", "nonsense", "DESTINATION=TARGET"),
        ("POST", "route", "10.0.2.100=direct", "a guest's address"),
        ("POST", "route", "10.0.2.5=socks5://user:secret@nowhere:80", "no IP address"),
        ("DELETE", "route", "10.0.2.5=direct", "no such route"),
        ("POST", "forward", "unix:///no/s=tcp://1.2.3.4:5", "cannot listen at unix:///no/s"),
        ("POST", "forward", "hvsock://parent/1=tcp://1.2.3.4:5", "Windows' own"),
        ("DELETE", "forward", "unix:///s=tcp://1.2.3.4:5", "no such forward"),
    ],
)
async def test_routes_and_forwards_that_cannot_be(
    client: Client, method: str, what: str, text: str, complaint: str
) -> None:
    with pytest.raises(ApiError, match=complaint) as told:
        await client(method, f"/v1/{what}s", {what: text})
    assert "secret" not in str(told.value)
    assert await client("GET", f"/v1/{what}s") == []


async def test_a_route_twice_is_refused(client: Client) -> None:
    await client("POST", "/v1/routes", {"route": "10.0.2.50=direct"})
    with pytest.raises(ApiError, match="already"):
        await client("POST", "/v1/routes", {"route": "10.0.2.50=direct"})
