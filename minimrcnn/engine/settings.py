"""Names and values that people type, turned into a Config; and a Config turned into plain values."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
from dataclasses import replace
from typing import Any, get_args, get_origin, get_type_hints

from minimrcnn.config import Architecture, Conventions
from minimrcnn.errors import UserError
from minimrcnn.recipes import CONFIGS, Config, Recipe

SECTIONS = {"architecture": Architecture, "conventions": Conventions, "recipe": Recipe}

# Every field that is a word, and the words that it can be.
CHOICES = {
    "architecture.block": ("bottleneck", "basic"),
    "architecture.norm": ("frozen_batch", "batch", "group"),
    "architecture.head_norm": ("none", "group"),
    "conventions.channel_order": ("rgb", "bgr"),
    "conventions.resize_rounding": ("floor", "round"),
    "conventions.anchor_base": ("rounded", "exact", "detectron"),
    "conventions.anchor_stride": ("from_padding", "fixed"),
    "conventions.rpn_normalizer": ("sampled", "fixed"),
    "conventions.level_epsilon": ("outside", "inside"),
    "conventions.mask_target": ("soft", "binary"),
    "conventions.paste": ("integer", "exact"),
    "recipe.optimizer": ("sgd", "adamw", "muon"),
    "recipe.schedule": ("steps", "cosine", "linear"),
    "recipe.amp": ("off", "bf16", "fp16"),
    "backbone_weights": ("IMAGENET1K_V1", "none"),
}
# The smallest number that makes sense, where another would fail late or not at all.
LEAST = {
    "architecture.num_classes": 2,
    **{f"architecture.{name}": 1 for name in ("blocks", "widths", "stem_width", "groups", "group_width")},
    **{f"architecture.{name}": 1 for name in ("fpn_channels", "anchor_sizes", "canonical_scale")},
    **{f"architecture.{name}": 1 for name in ("rpn_samples", "rpn_pre_nms", "rpn_post_nms_test")},
    **{f"architecture.{name}": 1 for name in ("roi_samples", "box_pool", "box_hidden", "mask_pool")},
    **{f"architecture.{name}": 1 for name in ("mask_convs", "mask_channels", "detections", "candidates")},
    **{f"architecture.{name}": 1 for name in ("min_size", "max_size", "divisor")},
    "architecture.anchor_ratios": 0.01,
    "architecture.trainable_layers": 0,
    "architecture.rpn_post_nms_train": 0,
    "conventions.rpn_post_nms_train": 1,
    "recipe.lr": 0.0,
    "recipe.base_batch": 1,
    "recipe.batch_size": 1,
    "recipe.steps": 1,
    "recipe.warmup": 0,
    "recipe.first_size": 0,
    "recipe.clip": 0.0,
    "recipe.weight_decay": 0.0,
    "recipe.norm_weight_decay": 0.0,
    "recipe.workers": 0,
    "recipe.checkpoint_every": 1,
}
# Shares, scores and IoUs: from 0 to 1.
SHARES = (
    *(f"architecture.{name}" for name in ("rpn_match", "rpn_positive_fraction", "rpn_nms_threshold")),
    *(f"architecture.{name}" for name in ("roi_match", "roi_positive_fraction", "score_threshold")),
    *("conventions.nms_threshold", "recipe.hflip", "recipe.vflip", "recipe.grown_at"),
)


def named_config(name: str) -> Config:
    """One of `recipes.CONFIGS`.

    Raises:
        UserError: there is none of that name; says the nearest one and all.
    """
    if name not in CONFIGS:
        raise UserError(f"--config {name}: no such configuration.{_nearest(name, list(CONFIGS))}")
    return CONFIGS[name]


def config_with(config: Config, assignments: list[str]) -> Config:
    """`config` with fields replaced: `["lr=0.01", "min_size=640,800", "conventions.aligned=true"]`.

    A field goes by its bare name, or by `section.name`; the section is needed where two have the name.

    Raises:
        UserError: no `=`, an unknown or ambiguous field (with the nearest name), or a value of another
            type or out of range.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write field=value, for example --set lr=0.01")
        path = _find(name.strip())
        section, _, field = path.rpartition(".")
        value = _converted(path, text.strip(), _kinds()[path], f"--set {assignment}")
        if section:
            config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
        else:
            config = replace(config, **{field: value})
    _check_together(config.architecture)
    return config


def _check_together(architecture: Architecture) -> None:
    """What no field shows alone; raises UserError."""
    levels, (high, low) = len(architecture.anchor_sizes), architecture.rpn_match
    if levels != 5:
        raise UserError(f"--set anchor_sizes: want 5 sizes, one for each of P2 to P6; not {levels}")
    if high < low:
        raise UserError(f"--set rpn_match={high},{low}: the IoU of a positive comes first and is the larger")


def config_to_plain(config: Config) -> dict:
    """The config as dicts, lists, numbers and strings, as JSON and checkpoints hold it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # which turns tuples into lists


def config_from_plain(plain: dict) -> Config:
    """The inverse of `config_to_plain`. Fields that are not there keep their defaults.

    Raises:
        UserError: a field that this version does not know, or a value of another type.
    """
    values: dict[str, dict] = {"": {}, **{section: {} for section in SECTIONS}}
    for path, value in _flat(plain).items():
        if path not in _kinds():
            raise UserError(f"configuration: no field {path!r}.{_nearest(path, list(_kinds()))}")
        section, _, field = path.rpartition(".")
        values[section][field] = _converted(path, value, _kinds()[path], f"configuration, {path}")
    return Config(**{name: kind(**values[name]) for name, kind in SECTIONS.items()}, **values[""])


def differences(old: Config, new: Config) -> list[str]:
    """One line for each field that differs: `recipe.lr: 0.02, 0.01`."""
    ours, theirs = _flat(config_to_plain(old)), _flat(config_to_plain(new))
    return [f"{path}: {ours[path]}, {theirs[path]}" for path in ours if ours[path] != theirs[path]]


@functools.cache
def _kinds() -> dict[str, Any]:
    """The type of every field by its path: `{"recipe.lr": float, "backbone_weights": str, ...}`."""
    kinds = {f"{s}.{name}": kind for s, c in SECTIONS.items() for name, kind in get_type_hints(c).items()}
    return kinds | {name: kind for name, kind in get_type_hints(Config).items() if name not in SECTIONS}


def _find(name: str) -> str:
    """The path of a field by its path or its bare name."""
    paths = list(_kinds())
    if name in paths:
        return name
    found = [path for path in paths if path.rpartition(".")[2] == name]
    if len(found) > 1:
        raise UserError(f"--set {name}: {' and '.join(found)} both exist. Write which one you mean.")
    if not found:
        bare = sorted({path.rpartition(".")[2] for path in paths})
        raise UserError(f"--set {name}: no such field.{_nearest(name, paths if '.' in name else bare)}")
    return found[0]


def _converted(path: str, value: Any, kind: Any, where: str) -> Any:
    """Text, or a value as JSON has it, to the type of the field; checked against CHOICES, LEAST, SHARES."""
    if get_origin(kind) is tuple:
        parts = [p for p in value.strip("()[] ").split(",") if p] if isinstance(value, str) else value
        kinds = get_args(kind)
        kinds = (kinds[0],) * len(parts) if Ellipsis in kinds else kinds
        if not isinstance(parts, list | tuple) or len(parts) != len(kinds) or not parts:
            count = len(get_args(kind)) if Ellipsis not in get_args(kind) else "one or more"
            raise UserError(f"{where}: {path} takes {count} values with commas between, not {value!r}")
        return tuple(_converted(path, part, one, where) for part, one in zip(parts, kinds, strict=True))
    try:
        converted = _scalar(value.strip() if isinstance(value, str) else value, kind)
    except (ValueError, TypeError, KeyError):
        meant = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind.__name__)
        raise UserError(f"{where}: {path} takes {meant or 'a word'}, not {value!r}") from None
    if isinstance(converted, str) and converted not in CHOICES[path]:
        raise UserError(f"{where}: {path} cannot be {converted!r}.{_nearest(converted, CHOICES[path])}")
    if path in LEAST and converted < LEAST[path]:
        raise UserError(f"{where}: {path} must be at least {LEAST[path]}, not {converted}")
    if path in SHARES and not 0 <= converted <= 1:
        raise UserError(f"{where}: {path} must be from 0 to 1, not {converted}")
    return converted


def _scalar(value: Any, kind: type) -> Any:
    """One value of the kind; raises ValueError, TypeError or KeyError for what is none."""
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "on": True}
        words |= {"false": False, "0": False, "no": False, "off": False}
        return value if isinstance(value, bool) else words[value.lower()]
    fits = {str: str, int: str | int, float: str | int | float}[kind]
    if isinstance(value, bool) or not isinstance(value, fits):
        raise TypeError
    converted = kind(value)
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError
    return converted


def _nearest(name: str, names: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names) if len(names) <= 12 else ""
    return (f" Did you mean {near[0]}?" if near else "") + (f" There are: {listed}." if listed else "")


def _flat(plain: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
