"""Frozen dataclasses as command lines: one option per field, explained by its docstring."""

import argparse
import ast
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar

ConfigType = TypeVar("ConfigType")


def build(config_class: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    """An instance of a configuration class from parsed options; it checks them itself."""
    chosen = {f.name: values[f.name] for f in fields(config_class)}  # type: ignore[arg-type]
    return config_class(**chosen)


def parse_group(
    config_class: type[ConfigType], program: str, summary: str, arguments: Sequence[str] | None
) -> Callable[[], ConfigType]:
    """Command line of a program with one group of options.

    Args:
        config_class: of the group.
        program: its name.
        summary: what it does.
        arguments: of the command line; None: those of this process.

    Returns:
        gives the options; it is there that they are checked and refused with a ValueError.
    """
    parser = argparse.ArgumentParser(
        program,
        description=summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_group(parser, config_class)
    values = vars(parser.parse_args(arguments))
    return lambda: build(config_class, values)


def add_group(parser: argparse.ArgumentParser, config_class: type) -> None:
    """One option per field: --field-name, --switch/--no-switch; required without a default."""
    summary = (inspect.getdoc(config_class) or "").splitlines()[0]
    group = parser.add_argument_group(config_class.__name__, summary)
    help_of, type_of = field_docstrings(config_class), typing.get_type_hints(config_class)
    for option in fields(config_class):
        settings: dict[str, Any] = {"help": help_of[option.name].replace("%", "%%")}
        settings |= _argument_type(type_of[option.name])
        if option.default is MISSING:
            settings |= {"required": True, "default": argparse.SUPPRESS}
        else:
            settings["default"] = option.default
        group.add_argument("--" + option.name.replace("_", "-"), dest=option.name, **settings)


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
    """The text under each field of a configuration class."""
    body = ast.parse(inspect.getsource(config_class)).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = {}
    for statement, follower in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(follower, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            documented[statement.target.id] = ast.literal_eval(follower.value)
    return documented
