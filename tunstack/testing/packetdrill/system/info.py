"""TCP_INFO: what the stack knows of a connection, under Linux's names (struct tcp_info of linux/tcp.h).

Times are in microseconds, but those since the last data and ACK in milliseconds; windows that Linux counts in
segments are rounded down, ranges of sequence numbers up. What the stack does not know is left out.
"""

from __future__ import annotations

from tunstack.ip import ipv4, ipv6
from tunstack.tcp import header as tcp_header
from tunstack.tcp.connection import Connection
from tunstack.tcp.receiver import DELAYED_ACK
from tunstack.tcp.recovery import Recovery
from tunstack.tcp.states import State
from tunstack.testing.packetdrill.system.tcp import TcpSocket

STATES = {
    State.ESTABLISHED: 1,
    State.SYN_SENT: 2,
    State.SYN_RECEIVED: 3,
    State.FIN_WAIT_1: 4,
    State.FIN_WAIT_2: 5,
    State.TIME_WAIT: 6,
    State.CLOSED: 7,
    State.CLOSE_WAIT: 8,
    State.LAST_ACK: 9,
    State.LISTEN: 10,
    State.CLOSING: 11,
}
_OPTION_TIMESTAMPS, _OPTION_SACK, _OPTION_WSCALE, _OPTION_ECN = 1, 2, 4, 8
_CA_OPEN, _CA_DISORDER, _CA_RECOVERY, _CA_LOSS = 0, 1, 3, 4
INFINITE_SSTHRESH = 0x7FFFFFFF
_LARGEST_SSTHRESH = 1 << 30
"""Bytes from which on the slow start threshold of an algorithm means none."""
_MICROSECONDS = 1_000_000
_OPENING = (State.SYN_SENT, State.SYN_RECEIVED)


def tcp_info(socket: TcpSocket, now: float) -> dict[str, int]:
    """The fields that are known."""
    socket.sync()
    info = {"tcpi_state": STATES[socket.state]}
    connection = socket.connection
    if socket.listener is not None:
        info["tcpi_unacked"] = len(socket.listener.ready)
        info["tcpi_sacked"] = socket.listener.backlog
    elif connection is not None:
        info |= _negotiated(connection)
        info |= _sending(connection, now)
        info |= _scoreboard(connection)
        info |= _counters(connection)
    return info


def _negotiated(connection: Connection) -> dict[str, int]:
    hot = connection.hot
    agreed = connection.state not in _OPENING
    options = 0
    if agreed and hot.timestamps:
        options |= _OPTION_TIMESTAMPS
    if agreed and hot.sack:
        options |= _OPTION_SACK
    if agreed and hot.rcv_shift:
        options |= _OPTION_WSCALE
    if connection.ecn.active:
        options |= _OPTION_ECN
    ip_header = ipv4.HEADER_LENGTH if len(connection.local) == 4 else ipv6.HEADER_LENGTH
    return {
        "tcpi_options": options,
        "tcpi_snd_wscale": hot.snd_shift,
        "tcpi_rcv_wscale": hot.rcv_shift,
        "tcpi_snd_mss": hot.mss,
        "tcpi_rcv_mss": connection.receiver.mss,
        "tcpi_advmss": connection.path_mss,
        "tcpi_pmtu": connection.path_mss + tcp_header.HEADER_LEN + ip_header,
    }


def _sending(connection: Connection, now: float) -> dict[str, int]:
    sender = connection.sender
    hot = connection.hot
    rtt = sender.rtt
    control = sender.congestion
    ssthresh = control.ssthresh
    info = {
        "tcpi_rto": round(rtt.current * _MICROSECONDS),
        "tcpi_ato": round(DELAYED_ACK * _MICROSECONDS),
        "tcpi_backoff": rtt.backoff,
        "tcpi_retransmits": sender.tries if sender.stalled_since is not None else 0,
        "tcpi_snd_cwnd": hot.cwnd // hot.mss,
        "tcpi_snd_ssthresh": INFINITE_SSTHRESH if ssthresh >= _LARGEST_SSTHRESH else ssthresh // hot.mss,
        "tcpi_snd_wnd": hot.snd_wnd,
        "tcpi_rcv_wnd": connection.receiver.window,
    }
    if rtt.srtt is not None:
        info["tcpi_rtt"] = round(rtt.srtt * _MICROSECONDS)
        info["tcpi_rttvar"] = round(rtt.rttvar * _MICROSECONDS)
        info["tcpi_min_rtt"] = round(rtt.min_rtt * _MICROSECONDS)
    if sender.last_sent_at:
        info["tcpi_last_data_sent"] = round((now - sender.last_sent_at) * 1000)
    if sender.heard_at:
        info["tcpi_last_ack_recv"] = round((now - sender.heard_at) * 1000)
    return info


def _scoreboard(connection: Connection) -> dict[str, int]:
    sender = connection.sender
    unacked = lost = retransmitted = 0
    if connection.state in _OPENING:
        unacked = 1  # the SYN
    for record in sender.records:
        segments = -(-record.size // record.mss)
        unacked += segments
        if record.lost:
            lost += segments
        elif record.transmissions > 1 and not record.sacked:
            retransmitted += segments
    sacked = sender.records.sacked_segments if connection.hot.sack else sender.duplicate_acks
    if sender.recovery is Recovery.NONE:
        state = _CA_DISORDER if sacked else _CA_OPEN
    else:
        state = _CA_LOSS if sender.recovery is Recovery.TIMEOUT else _CA_RECOVERY
    return {
        "tcpi_ca_state": state,
        "tcpi_unacked": unacked,
        "tcpi_sacked": sacked,
        "tcpi_lost": lost,
        "tcpi_retrans": retransmitted,
    }


def _counters(connection: Connection) -> dict[str, int]:
    sender = connection.sender
    hot = connection.hot
    return {
        "tcpi_total_retrans": hot.retransmits,
        "tcpi_bytes_acked": hot.bytes_out,
        "tcpi_bytes_received": hot.bytes_in,
        "tcpi_segs_in": hot.segments_in,
        "tcpi_segs_out": hot.segments_out,
        # The SYN has a number but is not in the chain.
        "tcpi_notsent_bytes": connection.unacked if connection.state in _OPENING else max(0, sender.unsent),
        "tcpi_dsack_dups": sender.duplicates,
    }
