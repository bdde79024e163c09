"""Options of a command out of the fields of settings dataclasses, and settings out of what was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer


def command(
    name: str, settings: dict[str, type], run: Callable[..., None], words: str,
    own: Sequence[inspect.Parameter] = (),
) -> Any:  # fmt: skip
    """A command whose options are the fields of these dataclasses, nested ones opened up; it runs

        run(**{name: an instance of each})

    words: what --help says. own: further parameters, which `run` is given as they are.
    """
    options = [*own] + [option for cls in settings.values() for option in _options(cls, None)]

    def body(typer_context: typer.Context, **values: Any) -> None:
        sources = {name: typer_context.get_parameter_source(name) for name in values}
        given = frozenset(name for name, source in sources.items() if source and source.name == "COMMANDLINE")
        filled = {name: _made(cls, values, given) for name, cls in settings.items()}
        run(**filled, **{one.name: values[one.name] for one in own})

    first = inspect.Parameter("typer_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    body.__signature__ = inspect.Signature([first, *options])  # type: ignore[attr-defined]
    body.__annotations__ = {first.name: typer.Context}
    one = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    one.command(name, help=words)(body)
    return typer.main.get_command(one)


def _options(cls: type, like: Any) -> Iterator[inspect.Parameter]:
    """like: an instance whose values are the defaults, in place of those of the class."""
    kinds = get_type_hints(cls)
    for field in fields(cls):
        how, kind = dict(field.metadata), kinds[field.name]
        if is_dataclass(kind):
            yield from _options(kind, field.default)  # type: ignore[arg-type]
        elif "given" in how:
            continue
        elif how.pop("argument", False):
            default = inspect.Parameter.empty if _needed(field) else None
            yield _parameter(field, kind, typer.Argument(show_default=False, **how), default)
        else:
            if (formerly := how.pop("formerly", None)) is not None:
                old = typer.Option(f"--{formerly.replace('_', '-')}", hidden=True)
                yield inspect.Parameter(
                    formerly, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, old], default=False
                )
            names = [f"--{field.name.replace('_', '-')}"] if kind is bool else []  # without a --no-…
            default = field.default if like is None else getattr(like, field.name)
            yield _parameter(field, kind, typer.Option(*names, **how), default)


def _parameter(field: Field, kind: Any, parameter: Any, default: Any) -> inspect.Parameter:
    annotation = Annotated[kind, parameter]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _needed(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _made(cls: type, values: dict[str, Any], given: frozenset[str]) -> Any:
    kinds, arguments = get_type_hints(cls), {}
    for field in fields(cls):
        if is_dataclass(kinds[field.name]):
            arguments[field.name] = _made(kinds[field.name], values, given)  # type: ignore[arg-type]
        elif "given" in field.metadata:
            arguments[field.name] = given
        else:
            value = values[field.name] or values.get(field.metadata.get("formerly", ""), values[field.name])
            arguments[field.name] = list(value or []) if "argument" in field.metadata else value
    return cls(**arguments)
