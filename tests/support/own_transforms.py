"""What a user would name as `augmentation.transform`: functions that return a transform of an image."""

import random

import numpy as np
import torch

from lowland.trainers.errors import DataError


def drawn():
    """Draws from every global generator there is, as torchvision's transforms draw from torch's."""

    def transform(image):
        numbers = (torch.randint(256, (1,)).item(), np.random.randint(256), random.randrange(256))
        return torch.where(torch.rand(image.shape) < 0.5, image, torch.tensor(random.choice(numbers)).byte())

    return transform


def identity():
    """Draws, and changes nothing."""

    def transform(image):
        torch.rand(3)
        return image

    return transform


def as_float():
    """Makes the image what lowland makes of it anyway."""
    return lambda image: image / 255


def smaller():
    """Crops."""
    return lambda image: image[:, 1:, 1:]


def fails():
    """Cannot be applied."""

    def transform(image):
        raise KeyError("no such thing")

    return transform


def wants_arguments(size):
    """Cannot be called without them."""
    return lambda image: image[:size]


def nothing():
    """Returns no transform."""


def as_array():
    """Gives no tensor."""
    return lambda image: image.numpy()


def step(index):
    """Of what processes make: arrays, or an error of the data."""
    if index == 5:
        raise DataError("step 5 is bad")
    return {"index": np.array(index)}
