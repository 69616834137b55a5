"""What the command line does with arguments that it does not understand: one sentence on stderr, and an exit code."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from harness.api.errors import UsageError
from harness.io.text import visible

USAGE, SOFTWARE, INTERRUPTED = 2, 70, 130
# An empty text says none there, or the command itself says what it is for.
MAY_BE_EMPTY = {"fitted", "update_baseline", "history"}


# What typer raises where it does not understand a command line; of the family it exports this one.
_NotUnderstood: Any = typer.BadParameter.__base__


class Command(TyperCommand):
    """Takes every option once, unless it is repeatable, and none that is empty: what is ignored is refused."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands behind the command's name.

        Raises:
            UsageError: an option is given twice, or has an empty value.
        """
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in () if given.get("help") else order:
            if param.param_type_name != "option" or param.multiple or getattr(param, "is_flag", False):
                continue
            name, value = max(param.opts, key=len), given[param.name]
            if sum(each is param for each in order) > 1:
                raise UsageError(f"{name} is given twice, of which one would be ignored; give it once")
            if isinstance(value, str) and not value.strip(" ,") and param.name not in MAY_BE_EMPTY:
                raise UsageError(f"{name} is empty; leave it out or give it a value")
        return super().parse_args(ctx, args)


class Commands(TyperGroup):
    """Says a UsageError, and what typer does not understand, in one sentence on stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the command."""
        none = not args  # which is answered by the help text
        try:
            return super().parse_args(ctx, args)
        except _NotUnderstood as error:
            if none:
                raise
            raise self._refused(error, None) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except _NotUnderstood as error:
            raise self._refused(error, ctx.invoked_subcommand) from None
        except UsageError as error:
            typer.echo(f"Error: {visible(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted; every finished cell is kept, the same command goes on from there.", err=True)
            raise typer.Exit(INTERRUPTED) from None

    @staticmethod
    def _refused(error: Any, name: str | None) -> typer.Exit:
        """Say what is wrong with the arguments of the command `name`; the exit to raise."""
        command = "" if name is None else f"{name} "
        text = visible(error.format_message())
        typer.echo(f"Error: {text}{' See' if text.endswith('.') else '; see'} {command}--help", err=True)
        return typer.Exit(USAGE)
