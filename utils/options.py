"""Command lines made of frozen dataclasses: one option a field, explained by its comment or the string below.

@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    workers: int = option(4, at_least=0)  # decoding processes; 0 decodes in the main process
"""

import argparse
import ast
import inspect
import math
import operator
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import zip_longest
from typing import Any, Literal


def option(
    default: Any = MISSING,  # noqa: ANN401 - of any type, as the field it makes
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Iterable[str] | None = None,
    hidden: bool = False,
) -> Any:  # noqa: ANN401
    """Make a field with bounds, which NaN and infinity never meet; required where it has no default.

    A hidden one is no option of the command line: old checkpoints and Python set it.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    metadata = {"bounds": bounds, "choices": choices and tuple(choices), "hidden": hidden}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of groups of options; one that checks more than single numbers calls super().__post_init__()."""

    def __post_init__(self) -> None:
        """Refuse values out of bounds with a ValueError that names the option, the bounds and the value."""
        for described in fields(self):
            bounds, value = described.metadata.get("bounds"), getattr(self, described.name)
            if not bounds or value is None:
                continue
            holds = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le}
            if not math.isfinite(value) or not all(
                holds[kind](value, bound) for kind, bound in bounds.items()
            ):
                words = " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in bounds.items())
                raise ValueError(f"{flag(described.name)} must be {words}, got {value}")


def flag(name: str) -> str:
    """Return the option of a field, e.g. `--batch-size` of `batch_size`."""
    return "--" + name.replace("_", "-")


def build(config_class: type, values: dict[str, Any]) -> Any:  # noqa: ANN401 - an instance of the class
    """Make a group from parsed values."""
    names = [described.name for described in fields(config_class)]
    return config_class(**{name: values[name] for name in names if name in values})


def refuse_dropped(dropped: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Refuse an option of an earlier version, in whatever form; `dropped` says what to use instead."""
    for argument in arguments:
        name = argument.partition("=")[0]
        known = name.replace("--no-", "--", 1)
        if known in dropped:
            raise ValueError(f"{name} is no longer there. {dropped[known]}")


def parse_group(
    config_class: type,
    program: str,
    summary: str,
    arguments: Sequence[str] | None,
    dropped: Mapping[str, str] | None = None,
) -> Any:  # noqa: ANN401
    """Parse the command line (None: of this process) of a program with one group; return the group."""
    refuse_dropped(dropped or {}, sys.argv[1:] if arguments is None else arguments)
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        program, description=summary, formatter_class=help_format, allow_abbrev=False
    )
    add_group(parser, config_class)
    return build(config_class, vars(parser.parse_args(arguments)))


def add_group(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add an option per field: --field-name, --switch/--no-switch; required without a default."""
    summary = (inspect.getdoc(config_class) or "").splitlines()[0]
    group = parser.add_argument_group(config_class.__name__, summary)
    help_texts, annotations = field_docstrings(config_class), typing.get_type_hints(config_class)
    for described in fields(config_class):
        if described.metadata.get("hidden"):
            continue
        settings = _argument_type(annotations[described.name])
        settings["help"] = help_texts[described.name].replace("%", "%%")
        if described.metadata.get("choices"):
            settings |= {"choices": described.metadata["choices"], "metavar": None}
        if described.default is MISSING:
            settings |= {"required": True, "default": argparse.SUPPRESS}
        else:
            settings["default"] = described.default
        group.add_argument(flag(described.name), dest=described.name, **settings)


def _argument_type(annotation: Any) -> dict[str, Any]:  # noqa: ANN401 - a type annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # X | None: absent is None
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": type(choices[0])}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": annotation, "metavar": annotation.__name__.upper()}


def field_docstrings(config_class: type) -> dict[str, str]:
    """Read the comment behind, or the text under, each field of a class, and of those that it inherits."""
    documented = {}
    for base in reversed(config_class.__mro__[:-1]):
        lines = inspect.getsource(base).splitlines()
        body = typing.cast(ast.ClassDef, ast.parse("\n".join(lines)).body[0]).body
        for statement, follower in zip_longest(body, body[1:]):
            if isinstance(statement, ast.AnnAssign):
                behind = lines[(statement.end_lineno or statement.lineno) - 1].partition("  # ")[2]
                below = ast.literal_eval(follower.value) if isinstance(follower, ast.Expr) else ""
                documented[ast.unparse(statement.target)] = below or behind
    return {described.name: documented[described.name] for described in fields(config_class)}
