"""Exact Gaussian-process regression over parameters and resource.

    y = f(x, r) + noise,    f ~ GP(0, s^2 M(x, x') F(r, r'))

M is a Matern-5/2 kernel with a length scale per dimension (ARD), F one over the logarithm of the resource, so
that cheap measurements inform about expensive ones as far as the data say they do.  Hyper-parameters are those of
largest posterior density under weak log-normal priors, by L-BFGS with exact gradients.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Array = npt.NDArray[np.float64]

_JITTER = 1e-8
_BOUNDS = {"scale": (-4.0, 4.0), "noise": (-12.0, 0.0), "length": (-5.0, 4.0)}
"""Of logarithms; targets have unit variance and inputs lie in [0, 1]."""


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process; inputs [n, d] hold the parameters and, last, the scaled logarithm of the resource."""

    theta: Array
    """Logarithms: variance s^2, noise variance, length scales [d]."""
    inputs: Array
    targets: Array
    """[n]"""
    weights: Array
    """K^-1 y, [n]"""
    cholesky: Array
    """Lower factor of K."""

    @classmethod
    def fit(cls, inputs: Array, targets: Array, start: Array | None = None, iterations: int = 40) -> "GaussianProcess":
        """Finds the hyper-parameters; of what two beginnings lead to, the likelier.

        Args:
            inputs: [n, d] in [0, 1].
            targets: [n], about zero mean and unit variance.
            start: `theta` of an earlier fit, to begin with besides the default: by itself it would pass on a poor
                maximum, in which few data left it, from fit to fit.
            iterations: of L-BFGS at most, from each beginning.
        """
        dimensions = inputs.shape[1]
        bounds = [_BOUNDS["scale"], _BOUNDS["noise"], *[_BOUNDS["length"]] * dimensions]
        differences = (inputs[:, None, :] - inputs[None, :, :]) ** 2
        beginnings = [_default(dimensions)] if start is None else [start, _default(dimensions)]
        found = [
            minimize(
                _loss,
                theta,
                args=(differences, targets),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": iterations},
            )
            for theta in beginnings
        ]
        return cls.condition(min(found, key=lambda one: float(one.fun)).x, inputs, targets)

    @classmethod
    def condition(cls, theta: Array, inputs: Array, targets: Array) -> "GaussianProcess":
        """The process with given hyper-parameters and data."""
        kernel = _kernel(theta, inputs, inputs)
        kernel[np.diag_indices_from(kernel)] += np.exp(theta[1]) + _JITTER
        factor = cho_factor(kernel, lower=True)
        return cls(theta, inputs, targets, cho_solve(factor, targets), np.tril(factor[0]))

    def believing(self, points: Array) -> "GaussianProcess":
        """The process as it would be if what it expects had been measured at these points."""
        inputs = np.concatenate([self.inputs, points])
        return self.condition(self.theta, inputs, np.concatenate([self.targets, self.predict(points)[0]]))

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of f, without noise, at points [m, d]."""
        cross = _kernel(self.theta, points, self.inputs)
        mean = cross @ self.weights
        half = solve_triangular(self.cholesky, cross.T, lower=True)
        variance = np.exp(self.theta[0]) - (half**2).sum(0)
        return mean, np.sqrt(np.maximum(variance, 1e-12))


def _default(dimensions: int) -> Array:
    theta = np.zeros(2 + dimensions)
    theta[1], theta[2:] = np.log(1e-2), 0.5 * np.log(dimensions) - 0.7
    return theta


def _kernel(theta: Array, first: Array, second: Array) -> Array:
    scaled_first, scaled_second = first * np.exp(-theta[2:]), second * np.exp(-theta[2:])
    squared = (
        (scaled_first**2).sum(1)[:, None] + (scaled_second**2).sum(1)[None, :] - 2 * scaled_first @ scaled_second.T
    )
    distance = np.sqrt(5 * np.maximum(squared, 0.0))
    kernel: Array = np.exp(theta[0]) * (1 + distance + distance**2 / 3) * np.exp(-distance)
    return kernel


def _loss(theta: Array, differences: Array, targets: Array) -> tuple[float, Array]:
    """Negative log posterior density and its gradient."""
    n, dimensions = len(targets), differences.shape[2]
    inverse_squares = np.exp(-2 * theta[2:])
    distance = np.sqrt(5 * np.maximum(differences @ inverse_squares, 0.0))
    decay = np.exp(-distance)
    scale, noise = np.exp(theta[0]), np.exp(theta[1])
    signal = scale * (1 + distance + distance**2 / 3) * decay
    kernel = signal.copy()
    kernel[np.diag_indices(n)] += noise + _JITTER
    try:
        factor = cho_factor(kernel, lower=True)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    alpha = cho_solve(factor, targets)
    inverse = cho_solve(factor, np.eye(n))
    value = 0.5 * targets @ alpha + np.log(np.diag(factor[0])).sum()
    outer = inverse - np.outer(alpha, alpha)
    gradient = np.empty_like(theta)
    gradient[0] = 0.5 * (outer * signal).sum()
    gradient[1] = 0.5 * noise * np.trace(outer)
    # d k / d log length_j = (5/3) s^2 (1 + u) exp(-u) (x_j - x'_j)^2 / length_j^2
    common = outer * (5 / 3 * scale * (1 + distance) * decay)
    gradient[2:] = 0.5 * np.einsum("ij,ijk->k", common, differences) * inverse_squares
    penalty, slope = _prior(theta, dimensions)
    return float(value + penalty), gradient + slope


def _prior(theta: Array, dimensions: int) -> tuple[float, Array]:
    """Normal priors on the logarithms: unit variance, little noise, lengths that grow with sqrt(dimensions)."""
    mean = np.concatenate([[0.0, np.log(1e-3)], np.full(dimensions, 0.5 * np.log(dimensions))])
    deviation = np.concatenate([[1.0, 2.0], np.full(dimensions, 1.2)])
    z = (theta - mean) / deviation
    return float(0.5 * z @ z), z / deviation
