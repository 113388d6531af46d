"""One file for each task, with the paper's numbers in it."""

from ilat_runtime.errors import InputError

from ..config import Recipe
from .face import FACE, FACE_SKETCH
from .pose import POSE
from .pose_demo import POSE_DEMO

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (POSE, FACE, FACE_SKETCH, POSE_DEMO)}


def recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in RECIPES:
        raise InputError(f"--recipe {name}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
