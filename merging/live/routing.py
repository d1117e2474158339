"""Arrow: each token of each layer is routed to the members whose strongest direction matches it best.

Ostapenko et al., "Towards Modular LLMs by Building and Routing to a Library of LoRAs" (arXiv 2405.11157,
section 3.2): the prototype of member i is the top right singular vector of Delta W_i, a member's logit is
|x . p_i|, and the outputs of the best k are mixed by a softmax over their logits. With one member it is that
member. Settings of the recycling paper (1.8): k = 4, temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merging.live.stack import LiveStack
from merging.members import Shape

TOP = 4
TEMPERATURE = 1.0


def prototypes(live: LiveStack) -> dict[str, Tensor]:
    """The unit prototypes of each module, (members that have it, in), in float32 on its device.

    The top eigenvector of A^T (B^T B) A through the small matrix: with A = L Q, Q orthonormal rows, it is
    Q^T times that of L^T (B^T B) L. The sign is free and does not change |x . p|.
    """
    with torch.no_grad():
        return {
            shape.name: torch.stack(
                [_direction(live, shape, place) for place in shape.ranges() if place.stop > place.start]
            )
            for shape in live.shapes
        }


def _direction(live: LiveStack, shape: Shape, place: slice) -> Tensor:
    a, bt = (part[place].double() for part in live.factors[shape.name])
    q, r = torch.linalg.qr(a.T)
    inner = r @ (bt @ bt.T) @ r.T
    vectors = torch.linalg.eigh((inner + inner.T) / 2).eigenvectors
    direction: Tensor = (q @ vectors[:, -1]).float()
    return direction


class ArrowGate:
    """The gate of a live stack: a weight for each rank, equal for the ranks of one member."""

    def __init__(self, shapes: tuple[Shape, ...], directions: Mapping[str, Tensor], top: int = TOP) -> None:
        self.directions = dict(directions)
        self.top = top
        self._owners = {
            shape.name: torch.repeat_interleave(
                torch.arange(sum(1 for rank in shape.ranks if rank)),
                torch.tensor([rank for rank in shape.ranks if rank]),
            ).to(directions[shape.name].device)
            for shape in shapes
        }

    def __call__(self, module: str, x: Tensor, _h: Tensor) -> Tensor:
        """Weights of (..., R) for inputs x of (..., in)."""
        directions = self.directions[module]
        # An embedding's input is a token, that is a unit vector.
        fits = x.to(directions.dtype) @ directions.T if x.is_floating_point() else directions.T[x]
        logits = fits.abs() / TEMPERATURE
        if self.top < logits.shape[-1]:
            least = logits.topk(self.top, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        return logits.softmax(-1)[..., self._owners[module]].to(x.dtype)
