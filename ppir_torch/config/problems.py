"""What is wrong with a configuration, in one line a problem: the field, its value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..errors import ConfigError
from .base import show
from .registry import OneOf

__all__ = ["checked", "choice_of", "holds_settings", "kinds", "problem_line"]

Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], mapping: Mapping[str, object]) -> Model:
    """The mapping as a configuration of this type.

    Raises:
        ConfigError: one line per problem: the field, its value, what is allowed.
    """
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        lines = [problem_line(problem, model) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def problem_line(problem: Any, root: type[BaseModel]) -> str:
    """One line for one of pydantic's errors in a model of type `root`: the field, its value, what is allowed."""
    path, holder, family = _locate(problem["loc"], root)
    kind, value, context = problem["type"], show(problem["input"]), problem.get("ctx", {})
    name = problem["loc"][-1] if problem["loc"] else ""
    field = holder.model_fields.get(name)
    choice = choice_of(field)
    if kind == "value_error":
        return f"{path}: {value}, {context['error']}" if path else str(context["error"])
    if kind == "extra_forbidden":
        given = next((part for part in problem["loc"] if part in kinds(holder)), "")
        return f"{path}: {_unknown_key(name, given, holder, family)}"
    if kind == "union_tag_invalid" and choice:
        return f"{path}.kind: {choice.refusal(context['tag'])}"
    if kind == "union_tag_not_found" and choice:
        return f"{path}.kind: missing, one of {', '.join(choice.settings())} is needed"
    needed = context["expected"] if kind == "literal_error" else _needed(field) if field else "a mapping"
    return f"{path or 'configuration'}: {'missing' if kind == 'missing' else value}, {needed} is needed"


def _locate(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, type[BaseModel], list[type[BaseModel]]]:
    """(the field's dotted name, the model that it is in, that model and its alternatives) of an error's place."""
    path, holder = "", root
    inside = family = [holder]
    chosen_next = False
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif chosen_next:  # pydantic puts the kind of a choice here
            family, inside, chosen_next = inside, [model for model in inside if part in kinds(model)], False
        elif inside:
            holder = inside[0]
            family = family if holder in family else [holder]
            path += ("." if path else "") + (part if part.isidentifier() else show(part))
            field = holder.model_fields.get(part)
            choice = choice_of(field)
            inside = list(choice.settings().values()) if choice else _models(field.annotation) if field else []
            chosen_next = choice is not None
    return path, holder, family


def choice_of(field: FieldInfo | None) -> OneOf | None:
    """What says which settings a field may hold, where it is a choice of an entry."""
    return next((part for part in field.metadata if isinstance(part, OneOf)), None) if field else None


def holds_settings(model: type[BaseModel], name: str) -> bool:
    """Whether a field of the model is a mapping of settings."""
    field = model.model_fields.get(name)
    return field is not None and bool(_models(field.annotation))


def _unknown_key(name: str, given: str, holder: type[BaseModel], family: list[type[BaseModel]]) -> str:
    known = list(holder.model_fields)
    if any(name in other.model_fields for other in family):
        settings = ", ".join(key for key in known if key != "kind") or "nothing else"
        return f"not a setting of {given}; beside kind it takes {settings}"
    near = difflib.get_close_matches(name, known, 1, 0.7)
    return f"unknown key, did you mean {near[0]}?" if near else f"unknown key, known here: {', '.join(known)}"


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of a model's field `kind`."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _needed(field: FieldInfo) -> str:
    """What a field takes, in words: its type and its range."""
    annotation = str(field.annotation)
    words = {"Path": "the path of a file", "tuple": "a list of 1 to 10 levels", "Config": "a mapping of settings"}
    words |= {"Settings": words["Config"]}
    words |= {"int": "an integer", "float": "a number", "bool": "true or false"}
    word = next((word for part, word in words.items() if part in annotation), "another value")
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    ranges = [f"{signs[k]} {getattr(m, k):.10g}" for m in field.metadata for k in signs if hasattr(m, k)]
    return " ".join([word, " and ".join(ranges)]).strip() + (" (or null)" if "None" in annotation else "")
