"""Birds on land or water, made here: what a bird is shows in its shape, and the ground mostly goes with it.

After Waterbirds (Sagawa et al., 2020), without downloads: a landbird is a diamond and a waterbird a square of the same
area and of any colour, so that shape alone tells them apart; land has upright stripes and is greenish, water has level
ones and is bluish.  In training a part of each kind is on its own ground; held out, each is on both equally often.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowland.trainers.data.images.chance import Purpose, Uniforms, uniforms
from lowland.trainers.recipe import ShapesConfig

BIRDS = ("landbird", "waterbird")
GROUNDS = ("land", "water")
_COLOURS = np.array([[0.38, 0.44, 0.30], [0.30, 0.40, 0.52]])
"""Mean red, green and blue of each ground."""
_AT_A_TIME = 1024

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """Images with what they show."""

    pixels: npt.NDArray[np.uint8]
    """[N, size, size, 3]."""
    birds: Numbers
    """[N], in `BIRDS`: the classes."""
    grounds: Numbers
    """[N], in `GROUNDS`."""

    def groups(self, column: str) -> list[str]:
        """[N]: of the column `ground` the ground, else bird and ground together."""
        grounds = [GROUNDS[ground] for ground in self.grounds]
        if column == "ground":
            return grounds
        return [f"{BIRDS[bird]}-{ground}" for bird, ground in zip(self.birds, grounds, strict=True)]


def make_shapes(config: ShapesConfig, *, held_out: bool) -> Shapes:
    """The images to train on or those to evaluate on; each is a function of the seed and its number alone.

    Args:
        config: how many, how large, and how often a bird is on its own ground.
        held_out: whether those to evaluate on, of which none is one to train on.
    """
    count = config.held_out if held_out else config.images
    numbers = np.arange(count, dtype=np.int64) + (config.images if held_out else 0)
    birds = np.arange(count, dtype=np.int64) % len(BIRDS)
    grounds = _grounds(birds, numbers, 0.5 if held_out else config.correlation, config.seed)
    parts = [slice(start, start + _AT_A_TIME) for start in range(0, count, _AT_A_TIME)]
    pixels = [_drawn(birds[part], grounds[part], numbers[part], config) for part in parts]
    return Shapes(np.concatenate(pixels), birds, grounds)


def _grounds(birds: Numbers, numbers: Numbers, own: float, seed: int) -> Numbers:
    """The own ground for exactly that part of each kind of bird, rounded; the other for the rest."""
    chance = _uniforms("ground", numbers, seed, 1)[:, 0]
    grounds = birds.copy()
    for bird in range(len(BIRDS)):
        members = np.flatnonzero(birds == bird)
        moved = members[np.argsort(chance[members], kind="stable")][: round((1 - own) * len(members))]
        grounds[moved] = 1 - bird
    return grounds


def _drawn(birds: Numbers, grounds: Numbers, numbers: Numbers, config: ShapesConfig) -> npt.NDArray[np.uint8]:
    """Pixels [n, size, size, 3]."""
    size = config.size
    place, look = (_uniforms(purpose, numbers, config.seed, 8)[:, :, None, None] for purpose in ("place", "look"))
    grain = _uniforms("grain", numbers, config.seed, size * size).reshape(-1, size, size)
    y, x = np.mgrid[0:size, 0:size] + 0.5
    along = np.where(grounds[:, None, None] == 0, x, y)
    stripes = np.sin(2 * np.pi * (along * (0.15 + 0.15 * place[:, 0]) + place[:, 1]))
    light = 0.10 * stripes + 0.15 * (grain - 0.5) + 0.2 * (place[:, 2] - 0.5)
    ground = _COLOURS[grounds][:, None, None, :] + light[..., None]
    cover = _shapes(birds, place, x, y, size)[..., None]
    bird = np.moveaxis(look[:, :3], 1, -1) * 0.8 + 0.1 + 0.15 * (grain[..., None] - 0.5)
    colours = cover * bird + (1 - cover) * ground
    pixels: npt.NDArray[np.uint8] = np.rint(colours.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _shapes(birds: Numbers, place: Floats, x: Floats, y: Floats, size: int) -> Floats:
    """How much of each pixel the bird covers: [n, size, size], with edges a pixel wide."""
    radius = size * (0.22 + 0.12 * place[:, 3])
    across = x - (radius + (size - 2 * radius) * place[:, 4])
    down = y - (radius + (size - 2 * radius) * place[:, 5])
    diamond = (radius - abs(across) - abs(down)) / np.sqrt(2)
    square = radius / np.sqrt(2) - np.maximum(abs(across), abs(down))
    inside: Floats = np.where(birds[:, None, None] == 0, diamond, square)
    return (inside + 0.5).clip(0, 1)


def _uniforms(purpose: Purpose, numbers: Numbers, seed: int, count: int) -> Uniforms:
    return uniforms(purpose, seed=seed, epochs=np.zeros_like(numbers), images=numbers, count=count)
