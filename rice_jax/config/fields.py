"""A setting: its default, unit, constraint and documentation, at the field of a dataclass."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """A setting that is not possible; the message names it, and says what was found and what was expected."""


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    minimum: int | float | None = None,
    above: int | float | None = None,
    maximum: int | float | None = None,
    below: int | float | None = None,
    free: bool = False,
) -> Any:
    """A dataclass field that is one setting.

    Args:
        default: its value if nothing else is set; also tells the type.
        doc: what it does, one or two sentences for `docs/settings.md`.
        unit: of the value, e.g. "pixels"; "" if it has none.
        choices: the only values; () = any.
        minimum, maximum: inclusive bounds.
        above, below: exclusive bounds.
        free: whether a run may be continued with another value, since it does not change what the run computes.
    """
    bounds = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"doc": doc, "unit": unit, "choices": choices, "free": free}
    return dataclasses.field(default=default, metadata=metadata | {k: v for k, v in bounds.items() if v is not None})


def group(cls: type, doc: str, *, free: bool = False) -> Any:
    """A dataclass field that is a group of settings; `free` holds for all of them."""
    return dataclasses.field(default_factory=cls, metadata={"doc": doc, "free": free})


def build(cls: type, values: Any, path: str = "config") -> Any:
    """Makes a group of settings from nested plain values; a setting that is not among them keeps its default.

    Args:
        cls: dataclass whose fields are `setting` or `group`.
        values: {name: value}.
        path: of the group, for messages.

    Raises:
        ConfigError: a name is unknown, or a value has the wrong type or breaks a constraint.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: found {values!r}, expected a group of settings")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        kind = "groups" if path == "config" else "settings"
        raise ConfigError(f"{path}.{unknown[0]}: unknown, expected one of the {kind} {', '.join(fields)}")
    return cls(**{name: _value(hints[name], fields[name], value, f"{path}.{name}") for name, value in values.items()})


def constraint(metadata: Mapping[str, Any]) -> str:
    """The constraint of a setting in words, e.g. "1 or more"; "" if there is none."""
    if metadata.get("choices"):
        names = [repr(choice) for choice in metadata["choices"]]
        return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    bounds = {
        name: str(value) if isinstance(value, int) else f"{value:g}"
        for name, value in metadata.items()
        if name in ("minimum", "above", "maximum", "below")
    }
    least = bounds.get("minimum", "")
    if "above" in bounds:
        least = f"above {bounds['above']}"
    if "maximum" in bounds:
        return f"{least} to {bounds['maximum']}"
    if "below" in bounds:
        return f"{least} to below {bounds['below']}"
    return f"{least} or more" if "minimum" in metadata else least


def _value(hint: type, field: dataclasses.Field, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: found {value!r} ({type(value).__name__}), expected {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: found {value!r}, expected a finite number")
    bounds = field.metadata
    fits = (
        (not bounds["choices"] or value in bounds["choices"])
        and ("minimum" not in bounds or value >= bounds["minimum"])
        and ("above" not in bounds or value > bounds["above"])
        and ("maximum" not in bounds or value <= bounds["maximum"])
        and ("below" not in bounds or value < bounds["below"])
    )
    if not fits:
        raise ConfigError(f"{path}: found {value!r}, expected {constraint(bounds)}")
    return value


def list_settings(cls: type, path: str = "config", *, with_free: bool = True) -> dict[str, dataclasses.Field]:
    """{path of a setting: its field} of all settings of a group and its subgroups, or of those that are not free."""
    hints: dict[str, Any] = typing.get_type_hints(cls)
    found: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(cls):
        name, hint = f"{path}.{field.name}", hints[field.name]
        if with_free or not field.metadata["free"]:
            is_group = dataclasses.is_dataclass(hint)
            found |= list_settings(hint, name, with_free=with_free) if is_group else {name: field}
    return found
