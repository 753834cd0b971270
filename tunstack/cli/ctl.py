"""`tunstack ctl`: look at a gateway that is running, and change it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from tunstack.cli import Failure, GuestCommand, failure_of

SHAPING = "/v1/guests/1/shaping"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "path", type=click.Path(dir_okay=False), metavar="PATH", help="Its control socket.")
@click.option("--pid", type=int, metavar="N", help="The number of its process.")
@click.pass_context
def command(ctx: click.Context, path: str | None, pid: int | None) -> None:
    """Look at a gateway that is running, and change it.

    Without --socket and --pid it is the one that this user has running, if there is one only.

    \b
    Examples:
      tunstack ctl list
      tunstack ctl shape --both 'delay 50ms loss 1%'
      tunstack ctl --pid 4711 shape --profile lte
    """
    if path is not None and pid is not None:
        raise Failure("give --socket or --pid, not both")
    ctx.obj = (path, pid)


@command.command("list", cls=GuestCommand)
def list_command() -> None:
    """List the gateways of this user that are running: process, guest, shaping."""
    from tunstack.api.control import running

    for pid, path in sorted(running().items()):
        (guest,) = _ask(path, "GET", "/v1/guests")
        shaping = _ask(path, "GET", SHAPING)
        shaped = ", ".join(f"{way}: {shaping[way]}" for way in ("up", "down") if shaping[way] is not None)
        click.echo(f"{pid}: guest {' and '.join(guest['addresses'])}; {shaped or 'not shaped'}")


@command.command(cls=GuestCommand)
@click.option("--up", metavar="WORDS", help="What the link does to packets from the guest; 'none': nothing.")
@click.option("--down", metavar="WORDS", help="The same for packets to the guest.")
@click.option("--both", metavar="WORDS", help="The same for either.")
@click.option("--profile", metavar="NAME", help="Both directions as a kind of access; see 'run --help'.")
@click.option("--link", type=click.Choice(["up", "down"]), help="Pull the cable, or plug it in again.")
@click.option(
    "--scenario",
    metavar="FILE",
    help="Follow the lines of FILE (- is standard input) from now on, such as '10s both loss 5%'. "
    "'none': stop that.",
)
@click.option("--stats", is_flag=True, help="Tell what each stage has done since the last change.")
@click.option("--json", "as_json", is_flag=True, help="The answer as it came.")
@click.pass_obj
def shape(
    obj: tuple[str | None, int | None],
    /,
    stats: bool,
    as_json: bool,
    both: str | None,
    **options: str | None,
) -> None:
    """Change how the link is shaped, while traffic flows; without an option, tell how it is.

    No packet is lost by a change: what waits for the rate goes on at the new one, and what is delayed arrives
    when it was due. Some words rule out the fast path; the answer says whether there is one.

    \b
    Examples:
      tunstack ctl shape --up 'rate 1mbit' --down 'rate 10mbit queue fq_codel'
      tunstack ctl shape --both none
      tunstack ctl shape --stats
    """
    change = _change(both, options)
    path = _find(*obj)
    answer = _ask(path, "PATCH", SHAPING, change) if change else _ask(path, "GET", SHAPING)
    if as_json:
        import json

        click.echo(json.dumps(answer, indent=2))
    elif not change or stats:
        _tell(answer, stats)


@command.group(invoke_without_command=True)
@click.pass_context
def route(ctx: click.Context) -> None:
    """List destinations that are services elsewhere, and add and remove them.

    \b
    Examples:
      tunstack ctl route
      tunstack ctl route add 10.0.2.50:5432=unix:///run/postgresql/.s.PGSQL.5432
      tunstack ctl route remove 10.0.2.50:5432=unix:///run/postgresql/.s.PGSQL.5432
    """
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, "route")


@route.command("add", cls=GuestCommand)
@click.argument("text", metavar="DESTINATION=TARGET")
@click.pass_obj
def add_route(obj: tuple[str | None, int | None], text: str) -> None:
    """Reach a destination in that way from now on; see 'tunstack gateway --help', --route."""
    _ask(_find(*obj), "POST", "/v1/routes", {"route": text})


@route.command("remove", cls=GuestCommand)
@click.argument("text", metavar="DESTINATION=TARGET")
@click.pass_obj
def remove_route(obj: tuple[str | None, int | None], text: str) -> None:
    """Do so no longer; what is under way stays. TEXT is as 'tunstack ctl route' lists it."""
    _ask(_find(*obj), "DELETE", "/v1/routes", {"route": text})


@command.group(invoke_without_command=True)
@click.pass_context
def forward(ctx: click.Context) -> None:
    """List listeners that lead into the network or to services, and add and remove them.

    \b
    Examples:
      tunstack ctl forward
      tunstack ctl forward add vsock://:8080=tcp://10.0.2.100:80
    """
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, "forward")


@forward.command("add", cls=GuestCommand)
@click.argument("text", metavar="LISTENER=TARGET")
@click.pass_obj
def add_forward(obj: tuple[str | None, int | None], text: str) -> None:
    """Lead who connects to LISTENER to TARGET; see 'tunstack gateway --help', --forward."""
    _ask(_find(*obj), "POST", "/v1/forwards", {"forward": text})


@forward.command("remove", cls=GuestCommand)
@click.argument("text", metavar="LISTENER=TARGET")
@click.pass_obj
def remove_forward(obj: tuple[str | None, int | None], text: str) -> None:
    """Listen there no longer."""
    _ask(_find(*obj), "DELETE", "/v1/forwards", {"forward": text})


def _list(obj: tuple[str | None, int | None], what: str) -> None:
    for one in _ask(_find(*obj), "GET", f"/v1/{what}s"):
        click.echo(one[what])


def _change(both: str | None, options: dict[str, str | None]) -> dict[str, str | None]:
    change: dict[str, str | None] = {}
    for way in ("up", "down"):
        words = options[way] if options[way] is not None else both
        if words is not None:
            change[way] = None if words.strip().lower() == "none" else words
    for name in ("profile", "link"):
        if options[name] is not None:
            change[name] = options[name]
    if (file := options["scenario"]) is not None:
        change["scenario"] = None if file == "none" else _read(file)
    return change


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise failure_of(error) from None
    except UnicodeDecodeError:
        raise Failure(f"'{file}' is not text") from None


def _tell(answer: dict[str, Any], stats: bool) -> None:
    click.echo(f"link {answer['link']}, {'fast path' if answer['fast_path'] else 'no fast path'}")
    if answer["scenario"]:
        click.echo("a scenario is being followed")
    for way in ("up", "down"):
        click.echo(f"{way}: {answer[way] if answer[way] is not None else 'not shaped'}")
        for name, stages in answer["stages"].items() if stats else ():
            if name.split()[0] == way:
                what = name.removeprefix(way).strip()
                for stage in stages:
                    click.echo(f"  {what + ': ' if what else ''}{_stage(stage)}")
    if stats and answer["link_down"]:
        click.echo(f"lost while the link was down: {answer['link_down']}")


def _stage(stage: dict[str, Any]) -> str:
    text = f"{stage['stage']}: {stage['received']} in, {stage['sent']} out"
    if stage["queued"]:
        text += f", {stage['queued']} waiting ({stage['queued_bytes']} bytes)"
    if stage["marked"]:
        text += f", {stage['marked']} marked"
    text += "".join(f", {count} {cause}" for cause, count in sorted(stage["dropped"].items()))
    if stage["longest"]:
        text += f"; {1000 * stage['sojourn']:.3f} ms each, {1000 * stage['longest']:.3f} at the most"
    return text


def _find(path: str | None, pid: int | None) -> Path:
    """The control socket that is meant."""
    if path is not None:
        return Path(path)
    from tunstack.api.control import running

    sockets = running()
    if pid is not None:
        if pid not in sockets:
            raise Failure(f"process {pid} serves no control socket of this user")
        return sockets[pid]
    if not sockets:
        raise Failure("no gateway of this user is running")
    if len(sockets) > 1:
        raise Failure(f"several gateways are running; choose one by --pid: {', '.join(map(str, sockets))}")
    return next(iter(sockets.values()))


def _ask(path: Path, method: str, target: str, body: object = None) -> Any:
    from tunstack.api.client import ApiError, ask

    try:
        return ask(path, method, target, body)
    except ApiError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"cannot reach the gateway at '{path}': {error.strerror}") from None
