"""What is measured: the plans of a complete and of a quick run, and how options change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from bench import agent, flows, framed, requests, routes, startup, throughput, tun, udp
from bench.session import Plan, Session

Settings = Mapping[str, Mapping[str, Any]]
"""By benchmark: the arguments of its plan but the peers."""

FULL: Settings = {
    "startup": {"rounds": 10, "seconds": 1, "families": (4,)},
    "requests": {"rounds": 5, "seconds": 2, "families": (4,), "connections": (1, 32, 256)},
    "connects": {"rounds": 5, "seconds": 2, "families": (4,), "connections": (1, 32, 256)},
    "udp": {
        "rounds": 3,
        "seconds": 3,
        "families": (4,),
        "sizes": (64, 512, 1400, 8192),
        "directions": udp.DIRECTIONS,
    },
    "framed": {"rounds": 3, "seconds": 1, "families": (4,), "directions": framed.DIRECTIONS},
    "agent": {
        "rounds": 3,
        "seconds": 2,
        "families": (4,),
        "directions": agent.DIRECTIONS,
        "links": agent.LINKS,
    },
    "routes": {"rounds": 5, "seconds": 2, "families": (4,), "directions": routes.DIRECTIONS},
    "tun": {"rounds": 3, "seconds": 1, "families": (4,), "mtus": (1500,), "directions": tun.DIRECTIONS},
    "flows": {"rounds": 3, "seconds": 1, "families": (4,), "idle": (100, 1000, 10_000)},
    "throughput": {
        "rounds": 3,
        "seconds": 1,
        "families": (4, 6),
        "mtus": (1500, 9000, 65520),
        "flows": (1, 8, 64),
        "directions": throughput.DIRECTIONS,
    },
}
"""About 32 minutes with four peers."""

QUICK: Settings = {
    "startup": {**FULL["startup"], "rounds": 3},
    "requests": {**FULL["requests"], "rounds": 2, "seconds": 0.5, "connections": (1, 32)},
    "connects": {**FULL["connects"], "rounds": 2, "seconds": 0.5, "connections": (1, 32)},
    "udp": {**FULL["udp"], "rounds": 1, "seconds": 1, "sizes": (64, 1400), "directions": ("up",)},
    "framed": {**FULL["framed"], "rounds": 1},
    "agent": {**FULL["agent"], "rounds": 1, "seconds": 1},
    "routes": {**FULL["routes"], "rounds": 1, "seconds": 1},
    "tun": {**FULL["tun"], "rounds": 1},
    "flows": {**FULL["flows"], "rounds": 1, "seconds": 0.5, "idle": (1000,)},
    "throughput": {
        **FULL["throughput"],
        "rounds": 2,
        "families": (4,),
        "mtus": (1500, 65520),
        "flows": (1,),
        "directions": ("up", "down"),
    },
}
"""About two minutes."""

BENCHMARKS = tuple(FULL)
"""In the order in which `all` runs them: the longest last."""

_PLANS: Mapping[str, tuple[type[Plan], Callable[[Any, Session], None], Mapping[str, str]]] = {
    "startup": (startup.StartPlan, startup.measure, {}),
    "requests": (requests.RequestPlan, requests.measure, {"kind": "requests"}),
    "connects": (requests.RequestPlan, requests.measure, {"kind": "connects"}),
    "udp": (udp.UdpPlan, udp.measure, {}),
    "framed": (framed.FramedPlan, framed.measure, {}),
    "agent": (agent.AgentPlan, agent.measure, {}),
    "routes": (routes.RoutePlan, routes.measure, {}),
    "tun": (tun.TunPlan, tun.measure, {}),
    "flows": (flows.CrowdPlan, flows.measure, {}),
    "throughput": (throughput.BulkPlan, throughput.measure, {}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A plan, and what carries it out."""

    name: str
    plan: Plan
    measure: Callable[[Any, Session], None]


def jobs(chosen: Iterable[str], settings: Settings, options: Mapping[str, Any]) -> list[Job]:
    """What is to be done: `settings` for each chosen benchmark, changed by the options that are not None."""
    found = []
    for name in chosen:
        kind, measure, fixed = _PLANS[name]
        given = {key: value for key, value in options.items() if key in settings[name] and value is not None}
        plan = kind(**{**settings[name], **given, **fixed, "peers": options["peers"]})
        found.append(Job(name, plan, measure))
    return found


Callback = Callable[[click.Context, click.Parameter, str | None], Any]


def numbers(least: int, most: int, sentence: str) -> Callback:
    """For an option that is a list of numbers between `least` and `most`; else `sentence` is said."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            found = tuple(int(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of numbers such as 1500,65520") from None
        if not all(least <= number <= most for number in found):
            raise click.BadParameter(sentence)
        return found

    return parse


def names(known: tuple[str, ...], what: str) -> Callback:
    """For an option that is a list of some of `known`."""

    def parse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        found = tuple(value.split(","))
        unknown = [name for name in found if name not in known]
        if unknown:
            raise click.BadParameter(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")
        return found

    return parse
