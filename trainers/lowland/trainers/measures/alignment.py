"""How alike two representations of the same examples are: kernel alignment and CKA.

For Gram matrices K and L of n examples, with H = I - 11^T/n:

    alignment(K, L) = <K, L> / (|K| |L|)                     Frobenius products
    CKA(X, Y)       = alignment(H X X^T H, H Y Y^T H)        Kornblith et al., arXiv 1905.00414

CKA does not change when the features of one side are rotated or multiplied by a number.  Its difference from 1 against
the features at initialisation is how far a network has left the lazy regime.
"""

from torch import Tensor

__all__ = ["centred", "cka", "kernel_alignment"]


def centred(kernel: Tensor) -> Tensor:
    """H K H: the kernel [n, n] of features whose mean over the examples is taken away."""
    return kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean()


def kernel_alignment(first: Tensor, second: Tensor) -> float:
    """The cosine between two kernels [n, n], in [-1, 1], and in [0, 1] for Gram matrices; 0 where one is zero."""
    first, second = first.double(), second.double()
    norms = float(first.norm() * second.norm())
    return float((first * second).sum()) / norms if norms > 0 else 0.0


def cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA between features of the same n examples, in [0, 1].

    Args:
        first: [n, d].
        second: [n, e]; the examples in the same order.

    Raises:
        ValueError: the numbers of examples differ.
    """
    if len(first) != len(second):
        raise ValueError(f"features of the same examples are needed, got {len(first)} and {len(second)} examples")
    grams = [x.double() @ x.double().T for x in (first, second)]
    return kernel_alignment(*(centred(gram) for gram in grams))
