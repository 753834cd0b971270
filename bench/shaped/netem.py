"""The same measurements with netem: a veth pair into a namespace, and the kernel's qdisc on either end.

For kernels that have `sch_netem`. Of the words of `spec` those that tc(8) has too; the queue is netem's own.
"""

from __future__ import annotations

import re
from typing import Any

from bench.peers import Veth
from bench.sandbox import SERVER_ADDRESS, BenchError, run
from bench.shaped.link import Probed

LIMIT = "limit 1000"
"""Packets inside of netem, its default."""


class NetemLink(Probed, Veth):
    """A veth pair whose ends netem shapes."""

    interface = "eth0"

    def __init__(self, mtu: int = 1500) -> None:
        super().__init__(mtu)
        self.target = SERVER_ADDRESS
        self._is_open = True
        self.guest.run("sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range")
        # What is shaped is what a wire would carry, its checksums included.
        for command in (("ethtool", "-K", self._name), (*self.guest.command("ethtool"), "-K", "eth0")):
            run(*command, "tso", "off", "gso", "off", "gro", "off", "tx", "off")

    def shape(self, **change: str | None) -> dict[str, Any]:
        """Change the link; directions that are not given are not shaped."""
        for way, prefix, device in (("up", self.guest.command(), "eth0"), ("down", [], self._name)):
            words = change.get(way)
            run(*prefix, "tc", "qdisc", "replace", "dev", device, "root", "pfifo", "limit", "1000")
            if words is not None:
                words = re.sub(r"\b(uniform|normal|pareto|paretonormal)\b", r"distribution \1", words)
                words = words.replace("distribution uniform", "")
                if re.search(r"\b(queue|trace|slot|burst)\b", words):
                    raise BenchError(f"netem has no such words: {words}")
                limit = () if "limit" in words else LIMIT.split()
                add = ("tc", "qdisc", "replace", "dev", device, "root", "netem", *limit, *words.split())
                run(*prefix, *add)
        return {}

    def close(self) -> str:
        """Take all down; nothing the second time."""
        if self._is_open:
            self._is_open = False
            super().close()
        return ""

    def run_delay(self) -> float:
        """Nobody knows: netem is a part of the kernel."""
        return 0.0

    def slices(self) -> int:
        """See `run_delay`."""
        return 1
