"""Control sockets of Windows: a gateway that is asked and changed by a named pipe."""

from __future__ import annotations

import os
import sys

import pytest

if sys.platform == "win32":
    from pathlib import Path

    import trio
    from click.testing import CliRunner

    from tunstack import open_gateway
    from tunstack.api import named_pipes
    from tunstack.api.client import ApiError, ask
    from tunstack.api.control import control_socket, running
    from tunstack.api.named_pipes import FOLDER, PipeListener
    from tunstack.cli import main

    SHAPING = "/v1/guests/1/shaping"

    async def test_a_gateway_is_found_asked_and_changed() -> None:
        async with open_gateway() as gateway, control_socket(gateway) as path:
            assert path == Path(f"{FOLDER}tunstack-{os.getpid()}")
            assert running() == {os.getpid(): path}
            before = await trio.to_thread.run_sync(ask, path, "GET", SHAPING)
            assert before["up"] is None
            for delay in ("10ms", "20ms"):
                await trio.to_thread.run_sync(ask, path, "PATCH", SHAPING, {"up": f"delay {delay}"})
                after = await trio.to_thread.run_sync(ask, path, "GET", SHAPING)
                assert after["up"] == f"delay {delay}"
            with pytest.raises(ApiError):
                await trio.to_thread.run_sync(ask, path, "PATCH", SHAPING, {"up": "nonsense"})
        assert running() == {}

    async def test_the_command_line_finds_it() -> None:
        async with open_gateway() as gateway, control_socket(gateway):
            for words, expected in ((["list"], "guest 10.0.2.100"), (["shape"], "not shaped")):
                result = await trio.to_thread.run_sync(CliRunner().invoke, main, ["ctl", *words])
                assert result.exit_code == 0 and expected in result.output, result.output

    async def test_many_clients_at_once() -> None:
        async with open_gateway() as gateway, control_socket(gateway) as path:
            answers = []

            async def one() -> None:
                answers.append(await trio.to_thread.run_sync(ask, path, "GET", SHAPING))

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(one)
            assert len(answers) == 20

    async def test_a_name_belongs_to_who_came_first() -> None:
        path = Path(f"{FOLDER}tunstack test {os.getpid()}")
        async with open_gateway() as gateway:
            async with control_socket(gateway, path) as chosen:
                assert chosen == path
                with pytest.raises(OSError, match="somebody has this pipe"):
                    async with control_socket(gateway, path):
                        pass
            async with control_socket(gateway, path):  # and is free again
                assert await trio.to_thread.run_sync(ask, path, "GET", SHAPING)
            with pytest.raises(OSError, match="no name of a pipe"):
                async with control_socket(gateway, "C:\\not a pipe"):
                    pass

    async def test_as_many_clients_as_there_can_be_hold_nobody_up_for_ever() -> None:
        name = f"{FOLDER}tunstack full {os.getpid()}"
        served = 0

        async def wait(stream: named_pipes.NamedPipe) -> None:
            nonlocal served
            served += 1
            await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, wait, [PipeListener(name)])
            clients = []
            for _ in range(named_pipes.MOST):
                clients.append(await trio.to_thread.run_sync(named_pipes.PipeClient, name, 5))
            with pytest.raises(OSError):
                await trio.to_thread.run_sync(named_pipes.PipeClient, name, 0.1)
            for client in clients[:2]:
                client.__exit__()
            clients.append(await trio.to_thread.run_sync(named_pipes.PipeClient, name, 5))
            while served < named_pipes.MOST + 1:
                await trio.sleep(0.01)
            for client in clients[2:]:
                client.__exit__()
            nursery.cancel_scope.cancel()

    async def test_nobody_is_there() -> None:
        with pytest.raises(OSError):
            ask(Path(FOLDER + "tunstack nobody"), "GET", SHAPING)

    async def test_who_comes_and_goes_and_who_waits_is_no_trouble() -> None:
        name = f"{FOLDER}tunstack echo {os.getpid()}"
        listener = PipeListener(name)

        async def echo(stream: named_pipes.NamedPipe) -> None:
            while data := await stream.receive_some():
                await stream.send_all(data)

        data = os.urandom(300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            for _ in range(20):
                with await trio.to_thread.run_sync(named_pipes.PipeClient, name, 5):
                    pass

            def exchange() -> bytes:
                got = bytearray()
                with named_pipes.PipeClient(name, 5) as client:
                    for start in range(0, len(data), 30_000):
                        client.sendall(data[start : start + 30_000])
                        while len(got) < min(start + 30_000, len(data)):
                            got += client.recv(65536)
                    with pytest.raises(TimeoutError):
                        client._timeout = 0.05
                        client.recv(1)
                return bytes(got)

            assert await trio.to_thread.run_sync(exchange) == data
            nursery.cancel_scope.cancel()
        for _ in range(50):  # a wait that is cancelled leaves nothing behind
            listener = PipeListener(name)
            with trio.move_on_after(0.001):
                await listener.accept()
            await listener.aclose()

else:

    def test_a_pipe_has_no_addresses() -> None:
        from tunstack.api.named_pipes import NoSocket

        assert (NoSocket().getsockname(), NoSocket().getpeername(), NoSocket().family) == ("", "", -1)
