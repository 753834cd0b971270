"""`tunstack attach`: become the network of a namespace that exists already."""

from __future__ import annotations

from typing import Any

import click

from tunstack.cli import Failure, GuestCommand, failure_of, run_trio, until_stopped
from tunstack.cli.options import Settings, guest_options, tun_option


@click.command(cls=GuestCommand, context_settings={"help_option_names": ["-h", "--help"]})
@guest_options
@tun_option
@click.argument("target", metavar="PID|NETNS-PATH")
def command(target: str, **options: Any) -> None:
    """Be the network of the namespace of process PID, or of the one at NETNS-PATH.

    A device is made there and configured, and its addresses are printed once it works. The guest's
    /etc/resolv.conf is left alone: put the DNS address that is printed into it. tunstack ends, with
    status 0, when the process or the path has gone, or on SIGTERM or SIGINT.

    \b
    Examples:
      tunstack attach 4711
      tunstack attach -p 8080:80 /run/netns/blue
    """
    settings = Settings.from_options(**options)
    settings.start_log()

    failure = run_trio(_attach, target, settings)
    if failure is not None:
        raise failure


async def _attach(target: str, settings: Settings) -> Failure | None:
    """Work until the end; a failure is returned, lest a nursery wraps it."""
    from contextlib import AsyncExitStack

    from tunstack import open_gateway
    from tunstack.gateway.namespace import NamespaceError
    from tunstack.ip.addresses import format_address

    failure: Failure | None = None
    plan = settings.plan
    async with until_stopped() as nursery:

        async def until_device_goes() -> None:
            nonlocal failure
            await gateway.wait_detached()
            failure = Failure(f"the device {attachment.device_name} was removed from the namespace")
            nursery.cancel_scope.cancel()

        async with AsyncExitStack() as stack:
            try:
                gateway = await stack.enter_async_context(open_gateway(**settings.gateway_options()))
                attachment = await gateway.attach_namespace(target, layer3=settings.layer3)
                await stack.enter_async_context(settings.serving(gateway))
            except NamespaceError as error:
                failure = Failure(str(error))
            except OSError as error:
                failure = failure_of(error)
            else:
                stack.callback(attachment.close)
                for addresses in zip(plan.guests, plan.gateways, plan.resolvers, strict=True):
                    guest, router, dns = map(format_address, addresses)
                    click.echo(f"{attachment.device_name}: guest {guest}, gateway {router}, dns {dns}")
                nursery.start_soon(until_device_goes)
                await attachment.wait_end()
            nursery.cancel_scope.cancel()  # before the gateway lets go of the device
    return failure
