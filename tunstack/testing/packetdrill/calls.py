"""System calls of a script: descriptors, calls that block, and whether a call returned what it should."""

from __future__ import annotations

import dataclasses

from tunstack.testing.packetdrill.language.syntax import Event, SystemCall
from tunstack.testing.packetdrill.language.values import (
    Array,
    Field,
    Integer,
    Struct,
    Symbol,
    Value,
    Wildcard,
    matches,
)
from tunstack.testing.packetdrill.result import Failure
from tunstack.testing.packetdrill.system import Call, Unsupported
from tunstack.testing.packetdrill.system.arguments import number

NEW_DESCRIPTORS = frozenset({"socket", "accept", "accept4", "dup", "epoll_create", "epoll_create1"})
"""Calls that return a descriptor."""
_WITHOUT_DESCRIPTOR = frozenset({"socket", "poll", "epoll_create", "epoll_create1"})
"""Calls whose first argument is none."""


class Descriptors:
    """Numbers of descriptors: a script may give them others than the system does."""

    def __init__(self) -> None:
        self._live: dict[int, int] = {}
        self.connection: int | None = None
        """The descriptor (of the system) that code asks about: the newest that was accepted or connected."""

    def learn(self, name: str, script: int, live: int) -> None:
        """A call returned `live`, which the script calls `script`."""
        self._live[script] = live
        if name.startswith("accept") or self.connection is None:
            self.connection = live

    def live(self, script: int) -> int:
        """The system's number for `script`."""
        return self._live.get(script, script)

    def translate(self, call: SystemCall) -> list[Value]:
        """The arguments of `call` with the system's numbers."""
        arguments = list(call.arguments)
        if all(script == live for script, live in self._live.items()):
            return arguments
        if arguments and call.name not in _WITHOUT_DESCRIPTOR:
            arguments[0] = self._descriptor(arguments[0])
        return [self._inside(argument) for argument in arguments]

    def _descriptor(self, value: Value) -> Value:
        return Integer(self.live(value.value)) if isinstance(value, Integer) else value

    def _inside(self, value: Value) -> Value:
        if isinstance(value, Array):
            return Array(tuple(self._inside(item) for item in value.items))
        if isinstance(value, Struct):
            return Struct(
                tuple(
                    Field(self._descriptor(field.value), field.name, field.count)
                    if field.name == "fd"
                    else field
                    for field in value.fields
                )
            )
        return value


@dataclasses.dataclass(slots=True)
class Pending:
    """A call that blocks: when it should return (seconds of the script), give or take `tolerance`."""

    event: Event
    spec: SystemCall
    call: Call
    end: float
    tolerance: float


def number_or_none(value: Value) -> int | None:
    """The number that `value` stands for, if it is one."""
    try:
        return number(value)
    except Unsupported:
        return None


def check_result(spec: SystemCall, call: Call, descriptors: Descriptors) -> None:
    """Raise `Failure` unless `call` returned and wrote what `spec` says; note the descriptors it made."""
    hints = _result_hints(spec, call)
    for index, (expected, actual) in enumerate(zip(call.arguments, call.outputs, strict=True), 1):
        if actual is not None and not matches(expected, actual, number_or_none):
            hints.append(f"argument {index}: expected {expected}, got {actual}")
    if hints:
        raise Failure(
            "syscall",
            f"{spec.name} did not return what it should",
            expected=_expected_result(spec),
            actual=_actual_result(call),
            hints=tuple(hints),
        )
    if spec.name in NEW_DESCRIPTORS and isinstance(spec.result, Integer) and call.result >= 0:
        descriptors.learn(spec.name, spec.result.value, call.result)
    elif spec.name == "connect" and spec.arguments and isinstance(spec.arguments[0], Integer):
        descriptors.connection = descriptors.live(spec.arguments[0].value)


def _result_hints(spec: SystemCall, call: Call) -> list[str]:
    hints = []
    if not _result_matches(spec, call):
        hints.append(f"result: expected {spec.result}, got {call.result}")
    if spec.errno is not None:
        wanted = number_or_none(Symbol(spec.errno))
        if wanted is None:
            raise Failure("syscall", f"there is no errno {spec.errno}")
        got = None if call.errno is None else number_or_none(Symbol(call.errno))
        if wanted != got:
            hints.append(f"errno: expected {spec.errno}, got {call.errno or 'none'}")
    elif call.errno is not None and hints:
        hints.append(f"errno: {call.errno}")
    return hints


def _result_matches(spec: SystemCall, call: Call) -> bool:
    if isinstance(spec.result, Wildcard):
        return True
    expected = number_or_none(spec.result)
    if spec.name in NEW_DESCRIPTORS and expected is not None and expected >= 0:
        return call.result >= 0
    return expected is not None and expected == call.result


def _expected_result(spec: SystemCall) -> str:
    return f"{spec.name}(...) = {spec.result}" + (f" {spec.errno}" if spec.errno else "")


def _actual_result(call: Call) -> str:
    return f"{call.name}(...) = {call.result}" + (f" {call.errno}" if call.errno else "")
