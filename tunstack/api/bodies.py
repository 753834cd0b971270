"""What the API takes and gives, as JSON. Names that are not known are refused."""

from __future__ import annotations

from typing import Literal

import msgspec


class ShapingChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A change of a link's shaping; what is left out stays as it is.

    Attributes:
        up, down: the words, or null for no shaping.
        profile: a kind of access in place of both; `up` and `down` beside it override their direction.
        link: whether the link is up.
        scenario: lines to be followed from now on, or null to stop following.
    """

    up: str | msgspec.UnsetType | None = msgspec.UNSET
    down: str | msgspec.UnsetType | None = msgspec.UNSET
    profile: str | msgspec.UnsetType = msgspec.UNSET
    link: Literal["up", "down"] | msgspec.UnsetType = msgspec.UNSET
    scenario: str | msgspec.UnsetType | None = msgspec.UNSET


class StageReport(msgspec.Struct, kw_only=True):
    """One stage: `tunstack.link.shaping.stage.StageStatistics`."""

    stage: str
    received: int
    added: int
    sent: int
    dropped: dict[str, int]
    queued: int
    queued_bytes: int
    marked: int
    sojourn: float
    longest: float


class Shaping(msgspec.Struct, kw_only=True):
    """How a link is shaped.

    Attributes:
        up, down: the words, or null.
        link: "up" or "down".
        scenario: whether one is being followed.
        fast_path: whether flows may be carried in C, which some words rule out.
        stages: by direction, in the order in which packets pass them; counted since the last change.
        link_down: packets that were lost because the link was down.
    """

    up: str | None
    down: str | None
    link: str
    scenario: bool
    fast_path: bool
    stages: dict[str, list[StageReport]]
    link_down: int


class Guest(msgspec.Struct, kw_only=True):
    """Who is behind the link.

    Attributes:
        id: its name in the paths of this API.
        addresses: IPv4 and IPv6, as text.
        attached: whether a device is there.
    """

    id: str
    addresses: list[str]
    attached: bool


class Route(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A route, DESTINATION=TARGET; what is given out has no credentials of a proxy."""

    route: str


class Forward(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A forward, LISTENER=TARGET."""

    forward: str


class Problem(msgspec.Struct, kw_only=True):
    """Why a request was refused; one sentence."""

    error: str
