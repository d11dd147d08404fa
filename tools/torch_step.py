"""The training step in torch with which tools/bench_train.py compares ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from torch.nn import functional as F
from torch_network import TorchNetwork

RECOMPILES = 64  # the largest number, for each mode and each kind of input


def prepare(device: str) -> None:
    """Let torch use TensorFloat-32, as TensorFlow does, and the fastest convolutions of cuDNN."""
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def product(device: str, dtype: str, size: int) -> Callable[[], None]:
    """Return a function that multiplies two matrices with `size` rows and columns."""
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))

    def multiply() -> None:
        torch.mm(a, a)

    return multiply


def step(
    network: keras.Model,
    row: tuple,
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float,
    rate: float,
    momentum: float,
    device: str = "cpu",
    channels_last: bool = False,
    autocast: bool = False,
    compiled: bool = False,
) -> Callable[[], None]:
    """Return a function that makes a training step, on the weights of a Keras network.

    Args:
        network: The network.
        row: One of bench_train.ROWS.
        x: Images [B, H, W, C].
        y: Labels [B].
        eps: The Linf eps.
        rate: The learning rate of SGD.
        momentum: The momentum of SGD.
        device: "cpu" or "cuda".
        channels_last: Whether tensors are in torch's channels-last format.
        autocast: Whether torch computes in bfloat16.
        compiled: Whether torch.compile compiles the network.
    """
    _, name, steps, alpha, beta, _ = row
    classes = network.output.shape[-1]
    model: Any = TorchNetwork(network).to(device)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(y).long().to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum)
    size = 1.25 * eps if steps == 1 else eps / 4
    if compiled:
        torch._dynamo.config.recompile_limit = RECOMPILES
        model = torch.compile(model)

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return model(images).float()

    def craft() -> torch.Tensor:
        model.eval()
        clean = logits(images).detach().log_softmax(1) if name == "trades" else None
        moved = (images + eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(steps):
            moved.requires_grad_(True)
            out = logits(moved)
            if clean is None:
                loss = F.cross_entropy(out, labels, reduction="sum")
            else:
                loss = _kl(out, clean)
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + size * gradient.sign()
            moved = (images + (moved - images).clamp(-eps, eps)).clamp(0, 1)
        return moved

    def run() -> None:
        adversarial = craft() if steps else images
        model.train()
        optimizer.zero_grad(set_to_none=True)
        centre = adversarial if name in ("adv", "atlas") else images
        if alpha:
            centre = centre.detach().requires_grad_(True)
        out = logits(centre)
        loss = F.cross_entropy(out, labels)
        if alpha:
            along = F.normalize(torch.randn_like(out), dim=1)
            (jacobian,) = torch.autograd.grad((along * out).sum(), centre, create_graph=True)
            loss = loss + alpha * classes * jacobian.square().sum() / len(images)
        if beta:
            other = logits(images if name == "atlas" else adversarial)
            loss = loss + beta * _kl(other, out.log_softmax(1)) / len(images)
        loss.backward()
        optimizer.step()

    return run


def _kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the sum over the batch of KL(softmax of the reference || softmax(logits))."""
    return F.kl_div(logits.log_softmax(1), reference, reduction="sum", log_target=True)
