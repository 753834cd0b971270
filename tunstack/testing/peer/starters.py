"""Peers whose connection is in a given state, reached by a handshake that is itself checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tunstack.tcp.states import State
from tunstack.testing.peer.conversation import Peer

RCV_NXT: dict[State, int] = {
    State.SYN_RECEIVED: 1,
    State.ESTABLISHED: 1,
    State.FIN_WAIT_1: 1,
    State.FIN_WAIT_2: 1,
    State.SYN_SENT: 2,
    State.CLOSE_WAIT: 2,
    State.CLOSING: 2,
    State.LAST_ACK: 2,
    State.TIME_WAIT: 2,
}
"""The next number (of the peer) that the device waits for in each starter's state."""

SND_NXT: dict[State, int] = dict.fromkeys(RCV_NXT, 2) | {
    State.SYN_RECEIVED: 1,
    State.ESTABLISHED: 1,
    State.CLOSE_WAIT: 1,
}
"""The device's next number in each starter's state."""

P = TypeVar("P", bound=Peer)


class Starters(Generic[P]):
    """State starters for peers that `make` makes. All take its options.

    `mss` and `shift` are options of the peer's SYN. A starter that fails ends the peer.
    """

    def __init__(self, make: Callable[..., P]) -> None:
        self._make = make

    def syn_sent(self, **options: Any) -> P:
        """The device's user has opened; its SYN was seen."""
        return self._start(self._syn_sent, options)

    def syn_received(self, **options: Any) -> P:
        """The peer has opened; the SYN-ACK was seen."""
        return self._start(self._syn_received, options)

    def established(self, **options: Any) -> P:
        """ESTABLISHED, opened by the peer, or by the device if `active`; nothing sent yet."""
        return self._start(self._established, options)

    def fin_wait_1(self, **options: Any) -> P:
        """The device's FIN (its number is 1) is out and not acknowledged."""
        return self._start(self._fin_wait_1, options)

    def fin_wait_2(self, **options: Any) -> P:
        """The device's FIN is acknowledged."""
        return self._start(self._fin_wait_2, options)

    def close_wait(self, **options: Any) -> P:
        """The peer's FIN (its number is 1) was acknowledged."""
        return self._start(self._close_wait, options)

    def closing(self, **options: Any) -> P:
        """Both have sent a FIN at the same time."""
        return self._start(self._closing, options)

    def last_ack(self, **options: Any) -> P:
        """The peer closed first, the device's FIN is out."""
        return self._start(self._last_ack, options)

    def time_wait(self, **options: Any) -> P:
        """The device closed first; all is said."""
        return self._start(self._time_wait, options)

    def of(self, state: State) -> Callable[..., P]:
        """The starter that leads to `state`.

        Raises:
            KeyError: there is none for CLOSED and LISTEN, where there is no connection.
        """
        return self.all()[state]

    def all(self) -> dict[State, Callable[..., P]]:
        """Every starter by its state."""
        return {
            State.SYN_SENT: self.syn_sent,
            State.SYN_RECEIVED: self.syn_received,
            State.ESTABLISHED: self.established,
            State.FIN_WAIT_1: self.fin_wait_1,
            State.FIN_WAIT_2: self.fin_wait_2,
            State.CLOSE_WAIT: self.close_wait,
            State.CLOSING: self.closing,
            State.LAST_ACK: self.last_ack,
            State.TIME_WAIT: self.time_wait,
        }

    def _start(self, walk: Callable[..., None], options: dict[str, Any]) -> P:
        handshake = {name: options.pop(name) for name in ("mss", "shift", "active") if name in options}
        peer = self._make(**options)
        try:
            walk(peer, **handshake)
        except BaseException:
            peer.end()
            raise
        return peer

    def _syn_sent(self, peer: P) -> None:
        peer.connect()
        peer.expect("S", seq=0)

    def _syn_received(self, peer: P, mss: int | None = 1460, shift: int | None = None) -> None:
        peer.send("S", seq=0, mss=mss, shift=shift)
        peer.expect("SA", seq=0, ack=1)

    def _established(
        self, peer: P, *, active: bool = False, mss: int | None = 1460, shift: int | None = None
    ) -> None:
        if active:
            self._syn_sent(peer)
            peer.send("SA", seq=0, ack=1, mss=mss, shift=shift)
            peer.expect("A", seq=1, ack=1)
        else:
            self._syn_received(peer, mss, shift)
            peer.send("A", seq=1, ack=1)
        if shift is not None and peer.inbox:
            # Only now can the whole window be told: that of a SYN is not scaled.
            peer.expect("A", seq=1, ack=1, length=0)
        self._arrived(peer, State.ESTABLISHED)

    def _fin_wait_1(self, peer: P, **handshake: Any) -> None:
        self._established(peer, **handshake)
        peer.shutdown()
        peer.expect("FA", seq=1, ack=1)
        assert peer.state is State.FIN_WAIT_1

    def _fin_wait_2(self, peer: P, **handshake: Any) -> None:
        self._fin_wait_1(peer, **handshake)
        peer.send("A", seq=1, ack=2)
        self._arrived(peer, State.FIN_WAIT_2)

    def _close_wait(self, peer: P, **handshake: Any) -> None:
        self._established(peer, **handshake)
        peer.send("FA", seq=1, ack=1)
        peer.expect("A", seq=1, ack=2)
        assert peer.state is State.CLOSE_WAIT

    def _closing(self, peer: P, **handshake: Any) -> None:
        self._fin_wait_1(peer, **handshake)
        peer.send("FA", seq=1, ack=1)
        peer.expect("A", seq=2, ack=2)
        assert peer.state is State.CLOSING

    def _last_ack(self, peer: P, **handshake: Any) -> None:
        self._close_wait(peer, **handshake)
        peer.shutdown()
        peer.expect("FA", seq=1, ack=2)
        assert peer.state is State.LAST_ACK

    def _time_wait(self, peer: P, **handshake: Any) -> None:
        self._fin_wait_2(peer, **handshake)
        peer.send("FA", seq=1, ack=2)
        peer.expect("A", seq=2, ack=2)
        assert peer.state is State.TIME_WAIT

    @staticmethod
    def _arrived(peer: Peer, state: State) -> None:
        peer.expect_nothing()
        assert peer.state is state
