"""The smallest network behind a namespace: answers ARP and ping. For tests of namespaces alone.

    tiny_gateway.py [--OPTION...] COMMAND...              as start_in_namespace; exits as the command does
    tiny_gateway.py [--OPTION...] --enter TARGET          as enter_namespace; until the end of the target

The options are the boolean fields of NamespaceOptions, with dashes.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any

import trio

from tunstack.gateway.namespace import (
    CommandNotRun,
    NamespaceError,
    NamespaceOptions,
    enter_namespace,
    start_in_namespace,
)
from tunstack.gateway.plan import DEFAULT_PLAN

VNET = bytes(10)
ARP, IPV4 = b"\x08\x06", b"\x08\x00"
PLAN = DEFAULT_PLAN


def answer(frame: bytes) -> bytes | None:
    """The reply to an ARP request or an echo request (Ethernet or bare IPv4)."""
    if frame[0] >> 4 == 4 and frame[12:14] not in (ARP, IPV4):
        return echo_reply(frame)
    if frame[12:14] == ARP and frame[20:22] == b"\0\1" and frame[38:42] in (PLAN.gateway, PLAN.dns):
        body = frame[14:20] + b"\0\2" + PLAN.gateway_mac + frame[38:42] + frame[22:32]
        return frame[6:12] + PLAN.gateway_mac + ARP + body
    if frame[12:14] == IPV4 and frame[:6] == PLAN.gateway_mac and (packet := echo_reply(frame[14:])):
        return frame[6:12] + frame[:6] + IPV4 + packet
    return None


def echo_reply(packet: bytes) -> bytes | None:
    length = 4 * (packet[0] & 15)
    if packet[9] != 1 or packet[length] != 8:
        return None
    # Type 8 becomes 0, so the checksum grows by 0x0800; swapped addresses change no sum.
    checksum = struct.unpack_from("!H", packet, length + 2)[0] + 0x0800
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    header = packet[:12] + packet[16:20] + packet[12:16] + packet[20:length]
    return header + b"\0\0" + struct.pack("!H", checksum) + packet[length + 4 :]


async def serve(fd: int) -> None:
    try:
        while True:
            await trio.lowlevel.wait_readable(fd)
            reply = answer(os.read(fd, 65600)[len(VNET) :])
            if reply is not None:
                os.write(fd, VNET + reply)
    finally:
        os.close(fd)


async def run(command: list[str], options: NamespaceOptions) -> int:
    async with trio.open_nursery() as nursery:
        try:
            async with start_in_namespace(command, PLAN, options) as guest:
                nursery.start_soon(serve, guest.take_device_fd())
                await guest.start()
                status = await guest.wait()
        except CommandNotRun as error:
            print(error, file=sys.stderr)
            status = error.status
        except NamespaceError as error:
            print(error, file=sys.stderr)
            status = 125
        nursery.cancel_scope.cancel()
    return status


async def enter(target: str, options: NamespaceOptions) -> int:
    try:
        attachment = await enter_namespace(target, PLAN, layer3=options.layer3)
    except NamespaceError as error:
        print(error, file=sys.stderr)
        return 125
    with attachment:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, attachment.take_device_fd())
            print(attachment.device_name, flush=True)
            await attachment.wait_end()
            nursery.cancel_scope.cancel()
    return 0


def main() -> int:
    arguments = sys.argv[1:]
    options: dict[str, Any] = {}
    target = None
    while arguments and arguments[0].startswith("--"):
        name = arguments.pop(0)
        if name == "--enter":
            target = arguments.pop(0)
        else:
            options[name[2:].replace("-", "_")] = True
    if target is not None:
        return trio.run(enter, target, NamespaceOptions(**options))
    return trio.run(run, arguments, NamespaceOptions(**options))


if __name__ == "__main__":
    sys.exit(main())
