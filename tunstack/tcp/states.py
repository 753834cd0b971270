"""The TCP state machine as data (RFC 9293 section 3.3.2).

Theory of operation. A connection is in one of the eleven states of the RFC. What moves it is
one of the events below: something that a segment meant once it was found acceptable, or
something that the user or a timer did. The table is the whole truth: `transition` looks it
up and raises `LocalError` for a pair that is not in it, so that a step which the RFC does not
know cannot happen silently. Acceptability, acknowledgement and data are not states; they live in
`connection.py`.

LISTEN here is the state of a request that was not answered yet: the gateway dials first
and sends SYN-ACK later (`listener.py`), so a `Connection` object starts in SYN-RECEIVED or SYN-SENT.

TIME-WAIT lasts 2 MSL and is restarted by a retransmitted FIN; a reset does not end it (RFC 1337).
"""

from __future__ import annotations

import enum

from tunstack.errors import LocalError


class State(enum.Enum):
    """The states of RFC 9293 3.3.2."""

    CLOSED = "closed"
    LISTEN = "listen"
    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    CLOSE_WAIT = "close-wait"
    CLOSING = "closing"
    LAST_ACK = "last-ack"
    TIME_WAIT = "time-wait"

    __hash__ = object.__hash__  # each member is there once, and Enum's own is Python


class Event(enum.Enum):
    """What moves a connection from state to state."""

    PASSIVE_OPEN = "passive open"
    ACTIVE_OPEN = "active open"
    SYN = "SYN received"
    SYN_ACK = "SYN-ACK received, our SYN acknowledged"
    ACK_OF_SYN = "our SYN acknowledged"
    FIN = "FIN received, all data before it as well"
    CLOSE = "our FIN sent"
    ACK_OF_FIN = "our FIN acknowledged"
    RESET = "acceptable RST received"
    ABORT = "aborted, or given up"
    TIME_WAIT_OVER = "2 MSL passed"

    __hash__ = object.__hash__


_S, _E = State, Event

TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.CLOSED, _E.PASSIVE_OPEN): _S.LISTEN,
    (_S.CLOSED, _E.ACTIVE_OPEN): _S.SYN_SENT,
    (_S.LISTEN, _E.SYN): _S.SYN_RECEIVED,
    (_S.LISTEN, _E.ABORT): _S.CLOSED,
    (_S.SYN_SENT, _E.SYN): _S.SYN_RECEIVED,
    (_S.SYN_SENT, _E.SYN_ACK): _S.ESTABLISHED,
    (_S.SYN_RECEIVED, _E.ACK_OF_SYN): _S.ESTABLISHED,
    (_S.SYN_RECEIVED, _E.CLOSE): _S.FIN_WAIT_1,
    (_S.SYN_RECEIVED, _E.FIN): _S.CLOSE_WAIT,
    (_S.ESTABLISHED, _E.CLOSE): _S.FIN_WAIT_1,
    (_S.ESTABLISHED, _E.FIN): _S.CLOSE_WAIT,
    (_S.FIN_WAIT_1, _E.ACK_OF_FIN): _S.FIN_WAIT_2,
    (_S.FIN_WAIT_1, _E.FIN): _S.CLOSING,
    (_S.FIN_WAIT_2, _E.FIN): _S.TIME_WAIT,
    (_S.CLOSE_WAIT, _E.CLOSE): _S.LAST_ACK,
    (_S.CLOSING, _E.ACK_OF_FIN): _S.TIME_WAIT,
    (_S.LAST_ACK, _E.ACK_OF_FIN): _S.CLOSED,
    (_S.TIME_WAIT, _E.TIME_WAIT_OVER): _S.CLOSED,
}
for _state in State:
    if _state not in (_S.CLOSED, _S.LISTEN):
        TRANSITIONS[_state, _E.ABORT] = _S.CLOSED
        if _state is not _S.TIME_WAIT:
            TRANSITIONS[_state, _E.RESET] = _S.CLOSED

SYNCHRONIZED = frozenset(
    {_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2, _S.CLOSE_WAIT, _S.CLOSING, _S.LAST_ACK, _S.TIME_WAIT}
)
"""States in which both initial sequence numbers are known and acknowledged."""

MAY_SEND = frozenset({_S.ESTABLISHED, _S.CLOSE_WAIT})
"""States in which the user may queue data that will be sent."""

MAY_RECEIVE = frozenset({_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2})
"""States in which data of the peer is taken."""


def transition(state: State, event: Event) -> State:
    """The state after `event` in `state`. Raises `LocalError` where RFC 9293 has no such step."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LocalError(f"no transition from {state.value} on '{event.value}'") from None
