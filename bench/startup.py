"""How soon it works: from the start of a gateway to the first packet, its memory then, and a whole command.

The first packet is the first answer to a datagram that the guest sends each millisecond from before the
start. The command is `true` in a namespace of its own, beside what importing trio alone takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bench.load import PORT, Load, result
from bench.peers import GATEWAYS
from bench.requests import MTU
from bench.sample import Case
from bench.sandbox import SERVER_ADDRESS, BenchError, Guest, resident, wait_until
from bench.session import Plan, Session

IMPORT = "import trio"
"""What `tunstack run` is compared with, in the place of a peer's name."""
_REST = 0.3
"""Seconds until a gateway that has just started is idle."""
_LIMIT = 20.0
"""Seconds until a start is given up."""
_ATTACH, _COMMAND = "attach", "run -- true"


def _commands(peers: tuple[str, ...]) -> dict[str, list[str]]:
    """What runs `true`, by peer."""
    commands = {
        "tunstack": [sys.executable, "-m", "tunstack", "run", "--", "true"],
        "pasta": ["pasta", "--config-net", "--quiet", "--", "true"],
    }
    chosen = {name: command for name, command in commands.items() if name in peers}
    return {**chosen, IMPORT: [sys.executable, "-c", "import trio"]} if chosen else {}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan(Plan):
    """Nothing more; `seconds` play no part."""

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        return self.rounds * (len(self.peers) * (_REST + 0.9) + 1)


def measure(plan: StartPlan, session: Session) -> None:
    """Carry out `plan`."""
    commands = _commands(plan.peers)
    with session.load.serving(SERVER_ADDRESS):
        for number in range(1, plan.rounds + 1):
            for name in (name for name in plan.peers if name in GATEWAYS):
                case: Case = (("what", _ATTACH),)
                session.turn("startup", case, name, number, functools.partial(_start, session.load, name))
            for name, command in commands.items():
                case = (("what", _COMMAND),)
                session.turn("startup", case, name, number, functools.partial(_command, command))


def _start(load: Load, name: str) -> Mapping[str, float]:
    with contextlib.ExitStack() as stack:
        clients: list[subprocess.Popen[bytes]] = []

        def before(guest: Guest) -> None:
            words = ("first", SERVER_ADDRESS, PORT, _LIMIT)
            clients.append(stack.enter_context(load.running(guest, *words)))
            time.sleep(0.05)

        gateway = GATEWAYS[name](MTU, before)
        stack.callback(gateway.close)  # a second time does nothing
        assert gateway.pid is not None
        ended = clients[0].poll
        wait_until(lambda: ended() is not None or not gateway.alive, _LIMIT + 5, "no datagram came back")
        if not gateway.alive:
            raise BenchError(f"the gateway ended at once; it said: {gateway.close()[-300:]}")
        arrived = result(clients[0], 1)["at"]
        time.sleep(_REST)
        return {"first_packet": arrived - gateway.started, "idle_rss": resident(gateway.pid)}


def _command(command: list[str]) -> Mapping[str, float]:
    said = " ".join([Path(command[0]).name, *command[1:]])
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"`{said}` did not end within {_LIMIT:g} s") from None
    if done.returncode:
        raise BenchError(f"`{said}` ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return {"duration": time.perf_counter() - start}
