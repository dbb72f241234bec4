"""What people type after --config and --set."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.engine.settings import (
    CHOICES,
    LEAST,
    SECTIONS,
    SHARES,
    config_from_plain,
    config_to_plain,
    config_with,
    differences,
    named_config,
)
from minimrcnn.errors import UserError
from minimrcnn.recipes import CONFIGS, Config, Recipe

MINI = CONFIGS["mini"]


@pytest.mark.parametrize(
    ("assignment", "section", "field", "value"),
    [
        ("lr=0.01", "recipe", "lr", 0.01),
        ("recipe.lr=1e-3", "recipe", "lr", 0.001),
        ("lr=1", "recipe", "lr", 1.0),
        ("steps = 20", "recipe", "steps", 20),
        ("min_size=640,800", "architecture", "min_size", (640, 800)),
        ("min_size=(640, 800)", "architecture", "min_size", (640, 800)),
        ("min_size=512", "architecture", "min_size", (512,)),
        ("milestones=0.5,0.9", "recipe", "milestones", (0.5, 0.9)),
        ("rpn_match=0.6,0.4", "architecture", "rpn_match", (0.6, 0.4)),
        ("level_epsilon=inside,1e-6", "conventions", "level_epsilon", ("inside", 1e-6)),
        ("aligned=true", "conventions", "aligned", True),
        ("channels_last=no", "recipe", "channels_last", False),
        ("amp=bf16", "recipe", "amp", "bf16"),
        ("architecture.rpn_post_nms_train=7", "architecture", "rpn_post_nms_train", 7),
        ("conventions.rpn_post_nms_train=7", "conventions", "rpn_post_nms_train", 7),
    ],
)
def test_one_field_is_replaced(assignment, section, field, value):
    changed = config_with(MINI, [assignment])
    assert getattr(getattr(changed, section), field) == value
    assert type(getattr(getattr(changed, section), field)) is type(value)
    back = replace(
        changed, **{section: replace(getattr(changed, section), **{field: _original(section, field)})}
    )
    assert back == MINI


def _original(section, field):
    return getattr(getattr(MINI, section), field)


def test_a_field_outside_the_sections():
    assert config_with(CONFIGS["paper"], ["backbone_weights=none"]).backbone_weights == "none"


def test_later_assignments_win():
    assert config_with(MINI, ["lr=1", "lr=2"]).recipe.lr == 2


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("learning_rate=1", "no such field"),
        ("warmpu=10", "Did you mean warmup?"),
        ("recipe.leer=10", "Did you mean recipe.lr?"),
        ("lr", "field=value"),
        ("lr=fast", "recipe.lr takes a number, not 'fast'"),
        ("lr=nan", "takes a number"),
        ("lr=inf", "takes a number"),
        ("lr=-1", "at least 0"),
        ("steps=1.5", "a whole number"),
        ("steps=0", "at least 1"),
        ("min_size=0", "at least 1"),
        ("anchor_sizes=1,2", "want 5 sizes"),
        ("rpn_match=0.3,0.7", "comes first and is the larger"),
        ("score_threshold=2", "from 0 to 1"),
        ("nms_threshold=-0.1", "from 0 to 1"),
        ("aligned=maybe", "true or false"),
        ("min_size=", "one or more values"),
        ("min_size=640,x", "a whole number, not 'x'"),
        ("rpn_match=0.5", "takes 2 values"),
        ("optimizer=adam", "Did you mean adamw?"),
        ("amp=bf-16", "Did you mean bf16?"),
        ("rpn_post_nms_train=5", "architecture.rpn_post_nms_train and conventions.rpn_post_nms_train"),
    ],
)
def test_errors_say_what_was_meant(assignment, said):
    with pytest.raises(UserError) as caught:
        config_with(MINI, [assignment])
    assert said in str(caught.value)
    assert assignment.split("=")[0] in str(caught.value)


def test_named_config():
    assert named_config("mini") is MINI
    with pytest.raises(UserError, match=r"detectron3.*Did you mean detectron2\?.*mini, torchvision, paper"):
        named_config("detectron3")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_plain_round_trip_through_json(name):
    plain = config_to_plain(CONFIGS[name])
    assert config_from_plain(json.loads(json.dumps(plain))) == CONFIGS[name]


@given(
    lr=st.floats(0, 1e3, allow_nan=False),
    sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=4),
    clip=st.floats(0, 10),
)
def test_typed_values_survive(lr, sizes, clip):
    typed = config_with(MINI, [f"lr={lr!r}", f"min_size={','.join(map(str, sizes))}", f"clip={clip!r}"])
    assert (typed.recipe.lr, typed.architecture.min_size, typed.recipe.clip) == (lr, tuple(sizes), clip)
    assert config_from_plain(config_to_plain(typed)) == typed


def test_plain_with_a_field_too_many():
    plain = config_to_plain(MINI)
    plain["recipe"]["momentun"] = 0.5
    with pytest.raises(UserError, match=r"recipe\.momentun.*recipe\.momentum"):
        config_from_plain(plain)


def test_plain_with_a_value_of_another_type():
    plain = config_to_plain(MINI)
    plain["recipe"]["steps"] = "many"
    with pytest.raises(UserError, match=r"recipe\.steps takes a whole number"):
        config_from_plain(plain)


def test_plain_with_fields_missing_takes_the_defaults():
    assert config_from_plain({"recipe": {"lr": 0.5}}) == Config(recipe=Recipe(lr=0.5))


def test_differences_name_the_fields():
    other = config_with(MINI, ["lr=0.5", "min_size=100,200"])
    assert differences(MINI, MINI) == []
    assert differences(MINI, other) == [
        f"architecture.min_size: {list(MINI.architecture.min_size)}, [100, 200]",
        f"recipe.lr: {MINI.recipe.lr}, 0.5",
    ]


def test_every_word_has_its_choices_and_every_default_is_one():
    """A new field of type str must be entered in CHOICES; a removed one taken out."""
    words = {"backbone_weights": [c.backbone_weights for c in CONFIGS.values()]}
    for section, kind in SECTIONS.items():
        hints = get_type_hints(kind)
        for field in fields(kind):
            values = [getattr(getattr(c, section), field.name) for c in CONFIGS.values()]
            if hints[field.name] is str:
                words[f"{section}.{field.name}"] = values
            elif isinstance(values[0], tuple) and isinstance(values[0][0], str):
                words[f"{section}.{field.name}"] = [value[0] for value in values]
    assert words.keys() == CHOICES.keys()
    assert all(value in CHOICES[path] for path, values in words.items() for value in values)


def test_limits_name_fields_that_exist():
    for path in (*LEAST, *SHARES):
        section, _, field = path.partition(".")
        assert field in get_type_hints(SECTIONS[section])
