"""What a user changes of a recipe: options of the command line, and a TOML file with more of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

from edgeclf.errors import DataError
from edgeclf.specs import ClipSpec
from edgeclf.train.recipe import Recipe

# What may be changed; the rest is what makes the recipe. A key that names a table holds fields of that part.
_KEYS = ("extractor", "weights", "crop", "resize", "views", "top", "drawn_clips", "stack_seconds", "stream", "refit")
_TABLES = ("settings", "augmentation", "fine_tuning", "frames_first", "clip", "classifier_options")

T = TypeVar("T")


def read_config(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises DataError where it is none."""
    tomllib: Any = import_module("tomllib")  # of Python 3.11, as TensorFlow's wheels are
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="see docs/training.md for what it may hold") from error


def merged(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The config with options over it; an option that is None was not given."""
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    for key, value in options.items():
        if isinstance(value, Mapping):
            table = result.get(key, {})
            if not isinstance(table, Mapping):
                raise DataError(f"{key} must be a table, not {table!r}", hint="see docs/training.md")
            result[key] = merged(table, value)
        elif value is not None:
            result[key] = value
    return {key: value for key, value in result.items() if value != {}}


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with some of its values replaced; raises DataError that names the key at fault."""
    if unknown := sorted(set(overrides) - {*_KEYS, *_TABLES}):
        raise DataError(
            f"a recipe has no {', '.join(unknown)} to change", hint=f"it has {', '.join((*_KEYS, *_TABLES))}"
        )
    changes: dict[str, Any] = {key: overrides[key] for key in _KEYS if key in overrides}
    if "extractor" in changes and not recipe.extractor:
        raise DataError(f"{recipe.name} has no extractor: its network takes frames", hint="leave --extractor out")
    if changes.get("extractor", recipe.extractor) != recipe.extractor:
        changes.setdefault("weights", "imagenet")  # a recipe that begins at random values means its own extractor
    for table in _TABLES:
        if table in overrides:
            changes[table] = _changed(recipe, table, overrides[table])
    try:
        changed = replace(recipe, **changes)
    except (TypeError, ValueError) as error:
        raise DataError(f"{recipe.name} cannot be changed so: {error}", hint="see docs/training.md") from error
    if changed.motion and not changed.extractor.startswith("efficientnet_lite"):
        raise DataError(f"{changed.extractor} gives no features of change", hint="take an EfficientNet-Lite")
    return changed


def _changed(recipe: Recipe, table: str, values: Any) -> Any:
    part = getattr(recipe, table)
    if part is None:
        raise DataError(f"{recipe.name} has no {table}", hint="choose another recipe")
    if table == "classifier_options":
        return {**part, **_checked_options(recipe, values)}
    return _clip(recipe, values) if table == "clip" else _replaced(part, table, values)


def _checked_options(recipe: Recipe, values: Any) -> Mapping[str, Any]:
    """Options of the recipe's classifier, such as the units of a layer."""
    known = {
        name: parameter.default
        for name, parameter in signature(recipe.classifier or recipe.build_classifier).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY and name != "first"
    }
    _refuse_unknown("classifier_options", values, set(known))
    for name, value in values.items():
        if isinstance(known[name], bool) and not isinstance(value, bool):
            message = f"classifier_options: {name} is {value!r}, must be true or false"
            raise DataError(message, hint="write it without quotes")
    return dict(values)


def _clip(recipe: Recipe, values: Any) -> ClipSpec:
    """The clips with another length or rate; hop and gaps follow them unless they are given."""
    part = recipe.clip
    allowed = {"length", "rate", "hop_seconds", "stale_seconds"}
    _refuse_unknown("clip", values, allowed)
    try:
        plain = ClipSpec.by_rate(values.get("length", part.length), values.get("rate", part.rate))
        rest = {key: values[key] for key in ("hop_seconds", "stale_seconds") if key in values}
        return replace(plain, sampling=part.sampling, padding=part.padding, **rest)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"clip: {error}", hint="see docs/training.md") from error


def _replaced(part: T, name: str, values: Any) -> T:
    _refuse_unknown(name, values, {field.name for field in fields(part)})  # type: ignore[arg-type]
    changes = {
        key: _replaced(getattr(part, key), f"{name}.{key}", value) if is_dataclass(getattr(part, key)) else value
        for key, value in values.items()
    }
    try:
        return replace(part, **changes)  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: {error}", hint="see docs/training.md") from error


def _refuse_unknown(name: str, values: Any, known: set[str]) -> None:
    if not isinstance(values, Mapping):
        raise DataError(f"{name} must be a table, not {values!r}", hint=f"it has {', '.join(sorted(known))}")
    if unknown := sorted(set(values) - known):
        raise DataError(f"{name} has no {', '.join(unknown)}", hint=f"it has {', '.join(sorted(known))}")
