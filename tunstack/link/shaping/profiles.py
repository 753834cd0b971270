"""Kinds of access to the internet, as words of `spec` for both directions, each with its source.

Round trips are those to the nearest server and are split evenly. The figures of `WPT` are the connectivity
profiles of WebPageTest (settings/connectivity.ini.sample); those of `FIREFOX` the throttling table of its
network monitor; those of `RFC2488` the propagation delays in its section 2, where the rates are ours.
"""

from __future__ import annotations

import dataclasses

WPT = "WebPageTest"
FIREFOX = "Firefox network monitor"
RFC2488 = "RFC 2488 section 2 (delay); rates are ours"
OURS = "ours"


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A kind of access.

    Attributes:
        up, down: the words for packets from and to the guest.
        source: where the figures are from.
        what: in a few words.
    """

    up: str
    down: str
    source: str
    what: str


def _access(one_way: str, up: str, down: str, source: str, what: str) -> Profile:
    return Profile(f"delay {one_way} rate {up}", f"delay {one_way} rate {down}", source, what)


PROFILES = {
    "fiber": _access("2ms", "5mbit", "20mbit", WPT, "FIOS: fibre to the home of about 2010"),
    "cable": _access("14ms", "1mbit", "5mbit", WPT, "cable"),
    "dsl": _access("25ms", "384kbit", "1.5mbit", WPT, "ADSL"),
    "dialup": _access("60ms", "30kbit", "49kbit", WPT, "a modem of 56 kbit/s"),
    "lte": _access("35ms", "12mbit", "12mbit", WPT, "LTE"),
    "4g": _access("85ms", "9mbit", "9mbit", WPT, "4G, a slower one"),
    "3g-fast": _access("75ms", "768kbit", "1.6mbit", WPT, "3G under good conditions"),
    "3g": _access("150ms", "768kbit", "1.6mbit", WPT, "3G"),
    "3g-slow": _access("200ms", "400kbit", "400kbit", WPT, "3G at the edge of a cell"),
    "2g": _access("400ms", "256kbit", "280kbit", WPT, "2G"),
    "edge": _access("420ms", "200kbit", "240kbit", WPT, "EDGE"),
    "gprs": _access("250ms", "20kbit", "50kbit", FIREFOX, "GPRS"),
    "wifi": _access("1ms", "15mbit", "30mbit", FIREFOX, "Wi-Fi"),
    "wifi-lossy": Profile(
        "delay 5ms 4ms ordered loss gemodel 1% 20% rate 15mbit",
        "delay 5ms 4ms ordered loss gemodel 1% 20% rate 30mbit",
        OURS,
        "Wi-Fi through walls: 4.8 % are lost, five in a row on average",
    ),
    "satellite": _access("25ms", "10mbit", "100mbit", OURS, "a low orbit"),
    "geo": _access("279ms", "2mbit", "20mbit", RFC2488, "a geostationary orbit, seen from the edge"),
}


def find(name: str) -> Profile:
    """The profile of that name; ValueError, with all names, if there is none."""
    profile = PROFILES.get(name.lower())
    if profile is None:
        raise ValueError(f"unknown profile '{name}'; there are {', '.join(PROFILES)}")
    return profile
