"""The runner: plays one script against the stack in virtual time and says what became of it.

Theory of operation. Events are taken one by one. What the script does itself (a packet to the stack, a system
call, code) happens when it is due; until then the stack's timers run. What it expects (a packet of the stack)
is the next one that the stack has sent and no event has taken, whenever that was; its time is then compared
with that of the event. A relative time counts from when the event before happened. So a packet that the
script does not expect is found by the next event that expects another; if no such event comes, a packet that
was sent before the last event fails the script at its end, and those sent from then on are nobody's business,
as in the published tool.

A call that blocks is started, and the script goes on; it is checked as soon as it has returned, and has
failed when its time has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tunstack.testing.packetdrill.calls import Descriptors, Pending, check_result
from tunstack.testing.packetdrill.code import CodeRunner
from tunstack.testing.packetdrill.flow import Flow
from tunstack.testing.packetdrill.icmp_names import number_of
from tunstack.testing.packetdrill.language.errors import ScriptError, UnsupportedSyntax
from tunstack.testing.packetdrill.language.parser import parse
from tunstack.testing.packetdrill.language.printer import format_action, format_packet, seconds
from tunstack.testing.packetdrill.language.syntax import (
    Code,
    Command,
    Direction,
    Event,
    IcmpPacket,
    Mss,
    Option,
    PacketAction,
    Script,
    SystemCall,
    TcpPacket,
    TimeKind,
    UdpPacket,
)
from tunstack.testing.packetdrill.machine import INSTANT, Machine, Restless
from tunstack.testing.packetdrill.outbound import Outbound
from tunstack.testing.packetdrill.result import WHOLE_SCRIPT, Failure, Result
from tunstack.testing.packetdrill.settings import Settings, apply_options, describe_settings
from tunstack.testing.packetdrill.system import Unsupported
from tunstack.testing.packetdrill.wire import build

LONGEST_WAIT = 86_400.0
"""Seconds that an event without a time (`*`) waits, or a call that should not block is watched."""

Trace = Callable[[str], None]
PacketTap = Callable[[float, bytes, bool], None]


def run_text(
    text: str,
    path: str = "script",
    *,
    options: Iterable[Option] = (),
    definitions: Mapping[str, str] | None = None,
    trace: Trace | None = None,
    tap: PacketTap | None = None,
) -> Result:
    """Run the script in `text`.

    `options` win over those at its head. `trace` gets a line for each thing that happens, `tap` each packet:
    its time in seconds of the script, its bytes, whether the stack sent it.
    """
    result = Result(path)
    settings = Settings(notes=result.notes)
    try:
        script = parse(text, path=path, definitions=definitions)
        overridden = tuple(options)
        names = {option.name for option in overridden}
        own = [option for option in script.options if option.name not in names]
        apply_options(settings, [*own, *overridden], path)
        check_supported(script, settings, path)
    except ScriptError as error:
        result.reject(error, _line_of(text, error.position.line))
        return result
    if not settings.dry_run:
        _Run(script, settings, result, trace, tap).play()
    return result


def _line_of(text: str, line: int) -> str:
    lines = text.split("\n")
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


def check_supported(script: Script, settings: Settings, path: str = "") -> None:
    """Raise `ScriptError` for packets that cannot be: it is seen before anything runs."""
    for event in script.events:
        action = event.action
        if not isinstance(action, TcpPacket | UdpPacket | IcmpPacket):
            continue
        if action.ip.flow_label is not None and settings.ip_version == 4:
            raise ScriptError("IPv4 has no flow label", event.position, path)
        try:
            if isinstance(action, IcmpPacket):
                number_of(settings.ip_version, action.type, action.code)
            if action.direction is Direction.INBOUND:
                build(action, Flow(settings.bind_port, settings.connect_port, 0), settings)
        except KeyError as error:
            name = f"ICMP over IPv{settings.ip_version} with {error.args[0]}"
            raise UnsupportedSyntax(f"{name} is not supported", event.position, path) from None
        except ValueError:
            message = "the packet is too long for the headers of IP and TCP"
            raise ScriptError(message, event.position, path) from None


class _Run:
    """One script under way."""

    def __init__(
        self, script: Script, settings: Settings, result: Result, trace: Trace | None, tap: PacketTap | None
    ) -> None:
        self._script = script
        self._settings = settings
        self._result = result
        self._trace = trace
        self._machine = Machine(settings)
        self._machine.on_packet = tap or (lambda time, data, outbound: None)
        self._outbound = Outbound(self._machine, settings)
        self._descriptors = Descriptors()
        self._code = CodeRunner()
        self._pending: list[Pending] = []
        self._began = 0.0
        """When the last event happened: what was sent before belongs to the script."""

    def play(self) -> None:
        """All events, then what they left."""
        event: Event | None = None
        self._say(describe_settings(self._settings))
        if self._script.setup is not None:
            self._skip(self._script.setup, "at the head")
        try:
            for event in self._script.events:
                self._play(event)
            event = None
            self._finish()
        except Failure as failure:
            self._fail(failure, event)
        except Unsupported as error:
            assert event is not None
            self._result.reject(UnsupportedSyntax(f"{error} is not supported", event.position), event.source)
        except Restless as error:
            self._fail(Failure("packet", str(error)), event)
        except Exception as error:  # a fault of the stack is a result, not the end of all scripts
            self._fail(Failure("packet", f"the stack raised {type(error).__name__}: {error}"), event)
            self._say(_traceback(error))
        for line in self._outbound.rest():
            self._say(f"{line}  // no event took it")
        self._result.duration = self._machine.now

    def _fail(self, failure: Failure, event: Event | None) -> None:
        if isinstance(failure, _Blocked):
            event = failure.event
        position, source = (WHOLE_SCRIPT, "") if event is None else (event.position, event.source)
        self._result.fail(failure, position, source)
        drops = self._machine.stack.drops.as_dict()
        if drops:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(drops.items()))
            self._result.notes.append(f"the stack dropped: {counts}")

    def _play(self, event: Event) -> None:
        try:
            self._at_its_time(event)
        except _Blocked:
            raise
        except Failure as failure:
            if failure.kind not in self._settings.non_fatal:
                raise
            self._result.notes.append(f"line {event.position.line}: {failure.message} (not fatal)")

    def _at_its_time(self, event: Event) -> None:
        machine = self._machine
        action = event.action
        before = machine.now
        base = before if event.time.relative else 0.0
        start = base + event.time.start / 1e6
        tolerance = self._tolerance(start - before)
        if isinstance(action, TcpPacket | UdpPacket | IcmpPacket) and action.direction is Direction.OUTBOUND:
            self._began = before
            self._expect(event, action, base, tolerance)
            return
        machine.advance(start)
        self._check_calls()
        self._began = machine.now
        if machine.now > start + tolerance + INSTANT:
            kind = "syscall" if isinstance(action, SystemCall) else "packet"
            raise Failure(kind, f"its time has passed: it is {machine.now:.6f} s already")
        if isinstance(action, SystemCall):
            self._call(event, action, base, tolerance)
        elif isinstance(action, Code):
            self._say(f"{machine.now:.6f} %{{{action.text.strip()}}}%")
            for line in self._code.run(
                action.text, machine.system, self._descriptors.connection
            ).splitlines():
                self._say(f"  {line}")
        elif isinstance(action, Command):
            self._skip(action, f"in line {event.position.line}")
        else:
            self._send(event, action)
        self._check_calls()

    def _tolerance(self, distance: float) -> float:
        """Seconds by which an event may miss its time, `distance` after the one before."""
        settings = self._settings
        return max(settings.tolerance_usecs / 1e6, settings.tolerance_percent / 100 * max(0.0, distance))

    def _skip(self, command: Command, where: str) -> None:
        text = " ".join(command.text.split())
        self._result.notes.append(f"the command `{text}` {where} is not run")

    def _say(self, text: str) -> None:
        if self._trace is not None:
            self._trace(text)

    # packets

    def _send(self, event: Event, packet: PacketAction) -> None:
        flow = self._flow_for(packet)
        if isinstance(packet, TcpPacket) and "S" in packet.flags and "." not in packet.flags:
            flow.peer_sends_syn(packet.range.start)
        if isinstance(packet, TcpPacket) and "S" in packet.flags:
            flow.peer_mss = next(
                (option.value for option in packet.options or () if isinstance(option, Mss)), None
            )
        self._say(f"{self._machine.now:.6f} {format_packet(packet)}")
        self._machine.inject(build(packet, flow, self._settings))

    def _flow_for(self, packet: PacketAction) -> Flow:
        machine = self._machine
        flows = machine.flows
        if isinstance(packet, UdpPacket):
            if packet.ports is not None:
                return flows.see_datagram(packet.ports.dst, packet.ports.src)
            return flows.for_datagram()
        if isinstance(packet, IcmpPacket):
            return flows.for_datagram() if isinstance(packet.quote, int) else flows.for_segment()
        opens = "S" in packet.flags and "." not in packet.flags
        if packet.ports is not None:
            return flows.get(packet.ports.dst, packet.ports.src, opens=opens)
        if opens:
            current = flows.current
            return flows.for_syn(packet.range.start, machine.is_opening(current), machine.is_alive(current))
        return flows.for_segment()

    def _expect(self, event: Event, packet: PacketAction, base: float, tolerance: float) -> None:
        machine = self._machine
        earliest, latest = base + event.time.start / 1e6, base + event.time.end / 1e6
        if event.time.kind is TimeKind.ANY:
            earliest, latest = 0.0, machine.now + LONGEST_WAIT
        elif event.time.kind in (TimeKind.ABSOLUTE, TimeKind.RELATIVE):
            latest = earliest
        wanted = f"{_window(event, earliest, latest)} {format_packet(packet)}"
        found = machine.advance(latest + tolerance, lambda: bool(machine.sent))
        self._check_calls()
        if not found:
            raise Failure("packet", f"no packet came until {machine.now:.6f} s", expected=wanted)
        taken = self._outbound.take(packet)
        hints = taken.hints
        if not earliest - tolerance - INSTANT <= taken.time <= latest + tolerance + INSTANT:
            hints.insert(0, f"time: expected {_window(event, earliest, latest)} s, got {taken.time:.6f} s")
        self._say(taken.line if taken.segments == 1 else f"{taken.line}  // {taken.segments} segments")
        if hints:
            raise Failure(
                "packet",
                "the packet of the stack is not the one expected",
                expected=wanted,
                actual=taken.line,
                hints=tuple(hints),
            )

    # system calls

    def _call(self, event: Event, spec: SystemCall, base: float, tolerance: float) -> None:
        machine = self._machine
        call = machine.call(spec.name, self._descriptors.translate(spec))
        if spec.end is not None:
            end = base + spec.end / 1e6
            self._say(f"{machine.now:.6f}...{end:.6f} {format_action(spec)}")
            self._pending.append(Pending(event, spec, call, end, tolerance))
            return
        if not call.done:
            machine.advance(machine.now + LONGEST_WAIT, lambda: call.done)
            if not call.done:
                raise Failure("syscall", f"{spec.name} blocks for ever, and the script says it does not")
            raise Failure(
                "syscall",
                f"{spec.name} returned at {machine.now:.6f} s, and the script says at once "
                f"(write {seconds(event.time.start)}...TIME)",
            )
        outcome = f"{call.result}" + (f" {call.errno}" if call.errno else "")
        self._say(f"{machine.now:.6f} {format_action(spec)}  // {outcome}")
        check_result(spec, call, self._descriptors)

    def _check_calls(self) -> None:
        """Calls that block: have they returned when they should, and what they should?"""
        machine = self._machine
        for pending in list(self._pending):
            call = pending.call
            try:
                if call.done:
                    self._pending.remove(pending)
                    self._check_end(pending, machine.script_time(call.finished_at))
                    check_result(pending.spec, call, self._descriptors)
                elif machine.now > pending.end + pending.tolerance + INSTANT:
                    self._pending.remove(pending)
                    raise Failure("syscall", f"{call.name} has not returned, at {machine.now:.6f} s")
            except Failure as failure:
                self._blocked(failure, pending)

    def _check_end(self, pending: Pending, at: float) -> None:
        if abs(at - pending.end) > pending.tolerance + INSTANT:
            raise Failure(
                "syscall",
                f"{pending.spec.name} did not return when it should",
                hints=(f"time: expected {pending.end:.6f} s, got {at:.6f} s",),
            )

    def _blocked(self, failure: Failure, pending: Pending) -> None:
        if failure.kind in self._settings.non_fatal:
            line = pending.event.position.line
            self._result.notes.append(f"line {line}: {failure.message} (not fatal)")
            return
        raise _Blocked(failure, pending.event)

    # the end

    def _finish(self) -> None:
        """Calls that still block get the time that they have; no packet from before the end may be left."""
        machine = self._machine
        while self._pending:
            last = max(pending.end + pending.tolerance for pending in self._pending)
            machine.advance(last + 2 * INSTANT)
            self._check_calls()
        if self._script.cleanup is not None:
            self._skip(self._script.cleanup, "at the end")
        line = self._outbound.left_over(self._began)
        if line is not None:
            failure = Failure("packet", "the stack sent a packet that no event expects", actual=line)
            if failure.kind not in self._settings.non_fatal:
                raise failure
            self._result.notes.append(f"{failure.message}: {line} (not fatal)")


class _Blocked(Failure):
    """The failure of a call that began at an earlier event."""

    def __init__(self, failure: Failure, event: Event) -> None:
        super().__init__(
            failure.kind,
            failure.message,
            expected=failure.expected,
            actual=failure.actual,
            hints=failure.hints,
        )
        self.event = event


def _window(event: Event, earliest: float, latest: float) -> str:
    if event.time.kind is TimeKind.ANY:
        return "*"
    return f"{earliest:.6f}" if earliest == latest else f"{earliest:.6f}~{latest:.6f}"


def _traceback(error: Exception) -> str:
    import traceback

    return "".join(traceback.format_exception(error)).rstrip()
