"""`tunstack config`: the configuration file of `tunstack gateway`, checked and described."""

from __future__ import annotations

import json

import click

from tunstack.cli import Failure


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Check and describe the file that `tunstack gateway --config` reads.

    \b
    Examples:
      tunstack config check gateway.yaml
      tunstack config schema >gateway.schema.json
    """


@command.command()
@click.argument("file", type=click.Path(dir_okay=False))
def check(file: str) -> None:
    """Tell whether FILE is a configuration."""
    from tunstack.gateway.config import ConfigError, load

    try:
        load(file)
    except ConfigError as error:
        raise Failure(str(error)) from None
    click.echo(f"'{file}' is a configuration")


@command.command()
def schema() -> None:
    """Print the JSON schema, which editors check and complete by."""
    from tunstack.gateway.config import schema as make

    click.echo(json.dumps(make(), indent=2))
