"""Be the whole network of a sandboxed command: it sees one web server, which is this program.

    python examples/serve_a_guest.py curl -s http://10.0.2.2/hello

The command runs in a network namespace of its own. No socket of the host is involved: its
connection to the gateway's port 80 ends in the trio stream that `answer` gets.
"""

from __future__ import annotations

import sys

import trio

import tunstack
from tunstack.gateway.namespace import NamespaceOptions, start_in_namespace


async def answer(stream: tunstack.TcpStream) -> None:
    """Answer one HTTP request with the address that it came from."""
    async with stream:
        request = b""
        while b"\r\n\r\n" not in request:
            received = await stream.receive_some()
            if not received:
                return
            request += received
        line = request.partition(b"\r\n")[0].decode("ascii", "replace")
        body = f"hello {stream.remote[0]}, you asked: {line}\n".encode()
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def main(command: list[str]) -> int:
    """Run `command`; its exit status."""
    plan = tunstack.AddressPlan.from_subnet()
    async with (
        start_in_namespace(command, plan, NamespaceOptions()) as guest,
        tunstack.open_gateway(plan) as gateway,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(trio.serve_listeners, answer, [await gateway.open_tcp_listener(80)])
        gateway.attach_fd(guest.take_device_fd())
        await guest.start()
        status = await guest.wait()
        nursery.cancel_scope.cancel()
    return status


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1:] or ["curl", "-s", "http://10.0.2.2/hello"]))
