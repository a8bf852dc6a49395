"""The recipes side by side."""

from typing import Any

from ..reports.markdown import table
from .config import RECIPES, TrainingConfig


def recipe_table() -> str:
    """All recipes as a Markdown table: a row per setting, a column per recipe."""
    names = [name for name in TrainingConfig.__dataclass_fields__ if any(name in row for row in RECIPES.values())]
    body = [[f"`{name}`", *(shown(row.get(name)) for row in RECIPES.values())] for name in names]
    return table(["setting", *(f"`{recipe}`" for recipe in RECIPES)], body)


def defaults_by_recipe(name: str) -> str:
    """Return a setting's default in each recipe, those of one value together; empty if no recipe has it."""
    by_value: dict[str, list[str]] = {}
    for recipe, row in RECIPES.items():
        by_value.setdefault(shown(row.get(name)), []).append(recipe)
    by_value.pop("", None)
    return "; ".join(f"{value} in {', '.join(recipes)}" for value, recipes in by_value.items())


def shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if type(value) is int else str(value)
