"""What a command leaves in its kernel when it exits still arrives."""

from __future__ import annotations

import socket
import sys
import threading

from tests.e2e.conftest import Guest

GUEST = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(bytes(range(251)) * int(sys.argv[3]))
s.close()
"""


def test_a_command_that_exits_right_after_close_loses_nothing(guest: Guest) -> None:
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def serve() -> None:
            client, _ = server.accept()
            with client:
                while data := client.recv(65536):
                    received.extend(data)

        thread = threading.Thread(target=serve)
        thread.start()
        port = str(server.getsockname()[1])
        guest.run(sys.executable, "-c", GUEST, guest.host, port, "8000")
        thread.join(30)
        assert not thread.is_alive()
    assert received == bytes(range(251)) * 8000


def test_a_server_that_never_reads_does_not_hold_the_command_for_ever(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        script = GUEST.replace("s.sendall(", "s.settimeout(1)\ntry: s.sendall(").replace(
            "s.close()", "except TimeoutError: s.close()"
        )
        process = guest.start(sys.executable, "-c", script, guest.host, port, "80000")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "waiting for 1 connections to deliver their last data" in err
