"""The application behind the API: what each path does.

    GET   /v1/guests                   who is there
    GET   /v1/guests/ID                one of them
    GET   /v1/guests/ID/shaping        how its link is shaped, with statistics of each stage
    PATCH /v1/guests/ID/shaping        change that, while traffic flows; see `bodies.ShapingChange`
    GET, POST, DELETE /v1/routes       which destinations are services elsewhere; see `bodies.Route`
    GET, POST, DELETE /v1/forwards     which listeners lead into the network; see `bodies.Forward`

POST adds one and DELETE removes one, which its body says as GET does. Answers are JSON, refusals too:
`{"error": "one sentence"}`.
"""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tunstack.api import bodies
from tunstack.api.bodies import Guest, Problem, Shaping, ShapingChange, StageReport
from tunstack.errors import DropReason
from tunstack.gateway.gateway import Gateway, Keep
from tunstack.ip.addresses import format_address
from tunstack.link.shaping.profiles import find
from tunstack.link.shaping.scenario import Scenario
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import StageStatistics
from tunstack.vsock.routes import ForwardSpec, RouteSpec

MAX_BODY = 1 << 20
"""Bytes of a request's body."""
GUEST = "1"
"""The name of the guest of a gateway that has one."""

_Spec = TypeVar("_Spec", RouteSpec, ForwardSpec)
_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_encode = msgspec.json.Encoder().encode


class _Answer(Response):
    media_type = "application/json"


def _answer(body: msgspec.Struct | list[Any], status: int = 200) -> Response:
    return _Answer(_encode(body) + b"\n", status)


def make_app(gateway: Gateway, nursery: trio.Nursery) -> Starlette:
    """The application for `gateway`; what it starts lives in `nursery`."""
    api = _Api(gateway, nursery)
    routes = [
        Route("/v1/guests", api.guests),
        Route("/v1/guests/{guest}", api.guest),
        Route("/v1/guests/{guest}/shaping", api.shaping, methods=["GET"]),
        Route("/v1/guests/{guest}/shaping", api.change_shaping, methods=["PATCH"]),
        *(Route("/v1/routes", api.routes, methods=[method]) for method in ("GET", "POST", "DELETE")),
        *(Route("/v1/forwards", api.forwards, methods=[method]) for method in ("GET", "POST", "DELETE")),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _refuse,
        ValueError: _complain,
        OSError: _complain,
        msgspec.MsgspecError: _complain,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


async def _refuse(request: Request, error: HTTPException) -> Response:
    answer = _answer(Problem(error=f"{request.method} {request.url.path}: {error.detail}"), error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _complain(request: Request, error: Exception) -> Response:
    reason = error.strerror if isinstance(error, OSError) else None
    return _answer(Problem(error=reason or str(error)), 400)


class _Api:
    def __init__(self, gateway: Gateway, nursery: trio.Nursery) -> None:
        self._gateway = gateway
        self._nursery = nursery

    async def guests(self, request: Request) -> Response:
        return _answer([self._guest()])

    async def guest(self, request: Request) -> Response:
        self._find(request)
        return _answer(self._guest())

    async def shaping(self, request: Request) -> Response:
        self._find(request)
        return _answer(self._shaping())

    async def change_shaping(self, request: Request) -> Response:
        self._find(request)
        change = msgspec.json.decode(await _body(request), type=ShapingChange)
        # All is read before anything is changed.
        shapes: dict[str, ShapeSpec | None] = {}
        if change.profile is not msgspec.UNSET:
            profile = find(change.profile)
            shapes = {"up": ShapeSpec.parse(profile.up), "down": ShapeSpec.parse(profile.down)}
        for name in ("up", "down"):
            words: str | msgspec.UnsetType | None = getattr(change, name)
            if words is not msgspec.UNSET:
                shapes[name] = None if words is None else ShapeSpec.parse(words)
        scenario = None if not isinstance(change.scenario, str) else Scenario.parse(change.scenario)
        gateway = self._gateway
        gateway.shape(up=shapes.get("up", Keep.KEEP), down=shapes.get("down", Keep.KEEP))
        if change.link is not msgspec.UNSET:
            gateway.set_link(change.link == "up")
        if change.scenario is None:
            gateway.stop_scenario()
        elif scenario is not None:
            await self._nursery.start(gateway.follow, scenario)
        return _answer(self._shaping())

    async def routes(self, request: Request) -> Response:
        bridge = self._gateway.bridge
        if request.method == "POST":
            spec = RouteSpec.parse((await _decoded(request, bodies.Route)).route)
            bridge.add_route(spec)
            return _answer(bodies.Route(route=str(spec)), 201)
        if request.method == "DELETE":
            text = (await _decoded(request, bodies.Route)).route
            bridge.remove_route(_chosen("route", text, bridge.routes))
        return _answer([bodies.Route(route=str(spec)) for spec in bridge.routes])

    async def forwards(self, request: Request) -> Response:
        bridge = self._gateway.bridge
        if request.method == "POST":
            spec = ForwardSpec.parse((await _decoded(request, bodies.Forward)).forward)
            bridge.add_forward(spec)
            return _answer(bodies.Forward(forward=str(spec)), 201)
        if request.method == "DELETE":
            text = (await _decoded(request, bodies.Forward)).forward
            bridge.remove_forward(_chosen("forward", text, bridge.forwards))
        return _answer([bodies.Forward(forward=str(spec)) for spec in bridge.forwards])

    def _find(self, request: Request) -> None:
        if request.path_params["guest"] != GUEST:
            raise HTTPException(404, f"there is no such guest; there is {GUEST}")

    def _guest(self) -> Guest:
        gateway = self._gateway
        addresses = [format_address(address) for address in gateway.plan.guests]
        return Guest(id=GUEST, addresses=addresses, attached=gateway.has_device)

    def _shaping(self) -> Shaping:
        gateway = self._gateway
        words = {name: None if spec is None else str(spec) for name, spec in gateway.shaping.items()}
        stages = {
            name: [_stage(stage) for stage in pipeline]
            for name, pipeline in gateway.shaping_statistics().items()
        }
        return Shaping(
            up=words["up"],
            down=words["down"],
            link="up" if gateway.is_link_up else "down",
            scenario=gateway.follows_scenario,
            fast_path=gateway.engine.has_fast_path,
            stages=stages,
            link_down=gateway.stack.drops[DropReason.LINK_DOWN],
        )


def _stage(stage: StageStatistics) -> StageReport:
    fields = {field: getattr(stage, field) for field in StageReport.__struct_fields__}
    dropped = {reason.value: count for reason, count in stage.dropped.items()}
    return StageReport(**{**fields, "dropped": dropped})


def _chosen(what: str, text: str, specs: list[_Spec]) -> _Spec:
    """The one that is printed as `text`."""
    for spec in specs:
        if str(spec) == text:
            return spec
    raise HTTPException(404, f"there is no such {what}")


async def _decoded(request: Request, kind: type[_Struct]) -> _Struct:
    return msgspec.json.decode(await _body(request), type=kind)


async def _body(request: Request) -> bytes:
    """The body, of which no more is kept than `MAX_BODY`."""
    body = b""
    async with contextlib.aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"the body has more than {MAX_BODY} bytes")
    return body
