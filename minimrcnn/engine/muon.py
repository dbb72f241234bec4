"""Muon: every weight matrix moves by an orthogonal matrix (Jordan et al. 2024, "Muon", a blog post).

The gradient of a matrix is dominated by a few directions; the other ones, in which the rare things are
learned, hardly move. Muon takes the gradient's momentum U S V^T and steps along U V^T: all directions at the
same speed. A convolution (out, in, k, k) is the matrix (out, in * k * k).
"""

from __future__ import annotations

import torch
from torch import Tensor

# A step of Adam changes each number by about the rate; an orthogonal (n, m) matrix has numbers of size
# max(n, m) ** -.5. With .2 * max(n, m) ** .5 both move alike (Liu et al. 2025, section 2.2); from nothing,
# `mini` learns best when its matrices move four times as far: mask AP .17, .20, .22 at 1, 2, 4 times
# after 300 steps, and .10 with Adam for all.
SCALE = 4 * 0.2
# Five times x <- 3.4445 x - 4.775 x^3 + 2.0315 x^5 brings every singular value of (0, 1] near 1.
COEFFICIENTS = 3.4445, -4.775, 2.0315
ITERATIONS = 5


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """The nearest orthogonal matrices, roughly: each (n, m) with singular values between .7 and 1.2.

    Newton-Schulz multiplies a matrix by a polynomial of its Gram matrix, which has the shorter side alone:
    however long they are, all matrices of 32 rows go through the iterations together.
    """
    wide = [matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    wide = [matrix / (matrix.norm() + 1e-12) for matrix in wide]
    turned: list[Tensor] = [matrix.new_empty(0) for matrix in wide]
    for rows in {len(matrix) for matrix in wide}:
        same = [i for i, matrix in enumerate(wide) if len(matrix) == rows]
        products = newton_schulz(torch.stack([wide[i] @ wide[i].mT for i in same]))
        for i, product in zip(same, products, strict=True):
            turned[i] = product @ wide[i]
    pairs = zip(turned, matrices, strict=True)
    return [result.mT if matrix.shape[0] > matrix.shape[1] else result for result, matrix in pairs]


def newton_schulz(gram: Tensor) -> Tensor:
    """What matrices with these Gram matrices (k, n, n) have to be multiplied by: (k, n, n).

    The polynomials of the iterations commute, so that they are multiplied with one another first.
    """
    product = last = polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = last @ gram @ last
        last = polynomial(gram)
        product = last @ product
    return product


def polynomial(gram: Tensor) -> Tensor:
    """a I + b G + c G^2, what one iteration multiplies by."""
    a, b, c = COEFFICIENTS
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


class Muon(torch.optim.AdamW):
    """Muon for the groups with "matrices": True, AdamW for the others, in one optimiser.

    Args:
        groups: parameter groups, each with "matrices" and "weight_decay", which the matrices do not have.
        lr: the rate, Adam's measure. betas: how long the gradient and its square are remembered;
            the matrices take the first.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient.

        Where `self.found_inf`, a 0-dimensional tensor, is 1, nothing changes: it is multiplied in, never
        looked at, so that no GPU has to be waited for. The fused AdamW reads it likewise.
        """
        every = self.param_groups
        self.param_groups = [group for group in every if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        found_inf = getattr(self, "found_inf", None)
        for group in every:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["matrices"] and weights:
                move(weights, self.state, group, found_inf)


def move(weights: list[Tensor], states: dict, group: dict, found_inf: Tensor | None) -> None:
    """One step of Muon, with Nesterov's momentum; every matrix keeps the length that it began with.

    Behind a normalisation layer the length of a matrix means nothing, but a step of a given size turns a
    long one by less: as it grew, learning would stall. Weight decay, which also holds it down, is not needed.
    """
    for weight in weights:
        if not states[weight]:
            states[weight]["momentum"] = torch.zeros_like(weight)
            states[weight]["length"] = weight.norm()
            states[weight]["step"] = torch.zeros(())  # AdamW looks for it in what it loads
    beta, rate = group["betas"][0], group["lr"]
    momenta = [states[weight]["momentum"] for weight in weights]
    gradients = [weight.grad for weight in weights]
    if found_inf is not None:
        rate = rate * (1.0 - found_inf)  # 0 leaves the step out
        skip = found_inf > 0  # then the momentum, drawn towards itself, stays; 0 * nan would be nan
        gradients = [torch.where(skip, m, g) for m, g in zip(momenta, gradients, strict=True)]
    torch._foreach_lerp_(momenta, gradients, 1 - beta)
    ahead = torch._foreach_lerp(gradients, momenta, beta)
    directions = orthogonal([matrix.flatten(1) for matrix in ahead])  # (out, in * k * k) each
    torch._foreach_mul_(directions, [SCALE * max(matrix.shape) ** 0.5 for matrix in directions])
    torch._foreach_mul_(directions, rate)
    torch._foreach_sub_(weights, [d.view_as(w) for d, w in zip(directions, weights, strict=True)])
    lengths = torch.stack([states[weight]["length"] for weight in weights])
    stretch = lengths / torch.stack(torch._foreach_norm(weights))
    stretch = torch.where(lengths > 0, stretch, 1.0)  # what began as zeros may grow
    if found_inf is not None:
        stretch = torch.where(skip, 1.0, stretch)
    torch._foreach_mul_(weights, list(stretch.unbind()))
