"""Birds on land and water: what goes with what, in which part of the images."""

import numpy as np
import pytest
from support.vision import config

from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.shapes import make_shapes
from lowland.trainers.estimate.images import estimate_images
from lowland.trainers.recipe import ShapesConfig

SMALL = ShapesConfig(images=200, held_out=80, correlation=0.95)


def test_images_are_a_function_of_the_seed():
    first, again = make_shapes(SMALL, held_out=False), make_shapes(SMALL, held_out=False)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.grounds, again.grounds)
    other = make_shapes(SMALL.model_copy(update={"seed": 1}), held_out=False)
    assert not np.array_equal(first.pixels, other.pixels)
    assert not np.array_equal(first.grounds, other.grounds)


@pytest.mark.parametrize(("correlation", "own"), [(0.95, 95), (1.0, 100), (0.5, 50)])
def test_birds_are_on_their_own_ground_as_often_as_is_said(correlation, own):
    made = make_shapes(SMALL.model_copy(update={"correlation": correlation}), held_out=False)
    for bird in (0, 1):
        assert (made.birds == bird).sum() == 100
        assert ((made.birds == bird) & (made.grounds == bird)).sum() == own


def test_held_out_groups_are_of_equal_size_and_no_training_images():
    train, held_out = make_shapes(SMALL, held_out=False), make_shapes(SMALL, held_out=True)
    names, counts = np.unique(held_out.groups("group"), return_counts=True)
    assert names.tolist() == ["landbird-land", "landbird-water", "waterbird-land", "waterbird-water"]
    assert counts.tolist() == [20] * 4
    assert not {image.tobytes() for image in train.pixels} & {image.tobytes() for image in held_out.pixels}


def test_colours_tell_grounds_and_no_birds():
    """The best threshold of any channel's mean finds all grounds, and birds hardly better than chance."""
    made = make_shapes(ShapesConfig(images=1000, held_out=1000), held_out=True)
    colours = made.pixels.reshape(1000, -1, 3).mean(1)
    colours = np.column_stack([colours, colours[:, 0] - colours[:, 2]])

    def found(labels):
        right = [((colour > edge) == labels).mean() for colour in colours.T for edge in np.quantile(colour, _PARTS)]
        return max(max(right), 1 - min(right))

    assert found(made.grounds == 1) > 0.97
    assert found(made.birds == 1) < 0.57


_PARTS = np.linspace(0.02, 0.98, 49)


def test_a_recipe_names_them():
    data = {"path": "shapes", "shapes": SMALL.model_dump(), "group_column": "group", "threads": 1}
    opened = open_images(config(data=data).data)
    assert (len(opened.train), len(opened.held_out), opened.size) == (200, 80, 16)
    assert opened.classes.names == ("landbird", "waterbird")
    assert opened.groups is not None
    assert len(opened.groups) == 4
    assert opened.lines() == []
    assert np.array_equal(
        opened.train.pixels(np.arange(3)).permute(0, 2, 3, 1), make_shapes(SMALL, held_out=False).pixels[:3]
    )
    assert opened.held_out.place(7) == "shapes held out row 7"
    of_grounds = open_images(config(data={**data, "group_column": "ground"}).data)
    assert of_grounds.groups is not None
    assert of_grounds.groups.names == ("land", "water")


def test_those_held_out_are_held_out_by_name_too():
    shapes = {"shapes": SMALL.model_dump(), "group_column": "group", "threads": 1}
    opened = open_images(config(data={"path": "shapes", "held_out_path": "shapes", **shapes}).data)
    found = opened.held_out.pixels(np.arange(80)).permute(0, 2, 3, 1)
    assert np.array_equal(found, make_shapes(SMALL, held_out=True).pixels)


@pytest.mark.parametrize(
    ("data", "images"),
    [
        ({"path": "shapes", "shapes": {"images": 320}}, 320),
        ({"path": "digits", "channels": 1}, 1617),
        ({"path": "digits", "channels": 1, "long_tail": {"ratio": 20}}, None),
    ],
)
def test_an_estimate_counts_what_is_trained_on(data, images):
    recipe = config(data=data, length="1 epochs")
    images = images or len(open_images(recipe.data).train)
    assert estimate_images(recipe, workers=1).steps == pytest.approx(images / 32, abs=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "digits", "shapes": {}}, "shapes says how path: shapes is made, but path is digits: remove shapes"),
        ({"path": "shapes", "group_column": "place"}, "group_column: place: the groups of shapes are group or ground"),
        ({"path": "shapes", "shapes": {"correlation": 1.2}}, "less than or equal to 1"),
        ({"path": "shapes", "shapes": {"images": 4}}, "greater than or equal to 8"),
        ({"path": "shapes", "shapes": {"size": 4}}, "greater than or equal to 8"),
        ({"path": "digits", "long_tail": {"ratio": 0.5}}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_made_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        config(data=data)
