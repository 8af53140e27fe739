"""Temperature scaling (Guo et al. 2017): one number that makes confidences mean what they say."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_RANGE = (0.05, 20.0)  # a temperature beyond this comes from a handful of images, not from the network


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood.

    Parameters
    ----------
    logits : float (N, C) of a validation set the network was not trained on.
    labels : int64 (N,).

    Returns
    -------
    A temperature between 0.05 and 20; probabilities are softmax(logits / temperature). 1.0 when there is nothing to
    fit.

    Raises
    ------
    ValueError : logits that are not finite: no temperature makes probabilities of them.
    """
    if len(labels) == 0:
        return 1.0
    if not logits.isfinite().all():
        raise ValueError("the logits are not finite: the network that gave them is broken, train it again")
    logits = logits.detach().to("cpu", torch.float64, copy=True)  # a copy: tensors of inference mode take no gradient
    labels = labels.cpu()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return float(log_temperature.detach().exp().clamp(*_RANGE))
