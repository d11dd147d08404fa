"""Make the frozen references of tests/parity with the public implementations of the attacks.

    python tools/make_references.py NAME... --autoattack DIR [--rays DIR]

NAME is apgd, fab, square or rays. The DIRs are checkouts of github.com/fra31/auto-attack (a392200)
and of github.com/uclaml/RayS (29bc174). The tool needs torch (a CPU is enough), unlike tfrobust
itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity.networks import EPS, REFERENCES, images


class DigitsNetwork(torch.nn.Module):
    """The network of tests/parity/networks.py, for images [B, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        with np.load(REFERENCES / "network.npz") as w:
            self.w = {name: torch.from_numpy(w[name]) for name in w.files}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 10]."""
        relu, w = torch.relu, self.w
        for name, stride in (("conv1", 1), ("conv2", 2)):
            kernel = w[f"{name}_kernel"].permute(3, 2, 0, 1)
            x = relu(torch.conv2d(x, kernel, w[f"{name}_bias"], stride=stride))
        x = x.permute(0, 2, 3, 1).flatten(1)  # Keras flattens channels last
        x = relu(x @ w["dense1_kernel"] + w["dense1_bias"])
        return x @ w["dense2_kernel"] + w["dense2_bias"]


def torch_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images [200, 1, 8, 8] and labels [200] of tests/parity/networks.py."""
    x, y = images()
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y).long()


def square() -> dict[str, np.ndarray]:
    """Return arrays of Square.

    These are its schedule over 5000 windows, with their sides on 28 x 28 pixels; its patterns in L2
    and L1; and the robust accuracy after 1000 windows for three seeds.
    """
    from autoattack.square import SquareAttack

    class Recorded(SquareAttack):
        def random_int(self, low: int = 0, high: int = 1, **shape: Any) -> torch.Tensor:
            room.append(high)  # high is 28 - side for every corner of a window
            return super().random_int(low, high, **shape)

    network, (x, y) = DigitsNetwork(), torch_images()
    arrays: dict[str, Any] = {}
    for norm, eps in EPS.items():
        room: list[int] = []
        attack = Recorded(_always_class_0, norm.capitalize(), 5000, eps, resc_schedule=False)
        attack.perturb(torch.zeros(1, 1, 28, 28), torch.tensor([0]))
        arrays["share"] = [attack.p_selection(i) for i in range(5000)]
        arrays[f"{norm}_side"] = 28 - np.array(room)[:: len(room) // 5000]
        for side in (1, 3, 4, 5, 8) if norm != "linf" else ():
            arrays[f"{norm}_pattern_{side}"] = attack.eta(side).numpy()
        arrays[f"{norm}_accuracy"] = accuracy = np.zeros(3)
        for seed in range(3):
            attack = SquareAttack(
                network, norm.capitalize(), 1000, eps, seed=seed, resc_schedule=False
            )
            robust = network(attack.perturb(x, y)).argmax(1) == y
            accuracy[seed] = robust.float().mean().item()
    return arrays


def _always_class_0(_: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0]])


def rays() -> dict[str, np.ndarray]:
    """Return the Linf distances of 50 images from the nearest misclassified image of RayS.

    RayS has 200 or 1000 queries.
    """
    # RayS imports a progress bar that is not in the checkout, and moves tensors to a GPU.
    sys.modules["pgbar"] = SimpleNamespace(progress_bar=lambda *_: None)  # type: ignore[assignment]
    torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign, assignment]
    from RayS import RayS

    x, y = (t[:50] for t in torch_images())
    distance = {limit: torch.full([50], torch.inf) for limit in (200, 1000)}

    class Recorded(RayS):
        def search_succ(self, images: Any, y: Any, target: Any, mask: Any) -> Any:
            wrong = super().search_succ(images, y, target, mask)
            far = (images - x).abs().flatten(1).amax(1)[mask]
            for limit, least in distance.items():
                met = wrong & (self.queries[mask] <= limit)
                least[mask] = torch.where(met, torch.minimum(far, least[mask]), least[mask])
            return wrong

    network = DigitsNetwork()
    model = SimpleNamespace(predict_label=lambda images: network(images).argmax(1))
    Recorded(model)(x, y, query_limit=1000)
    return {f"distance_{limit}": least.numpy() for limit, least in distance.items()}


def apgd() -> dict[str, Any]:
    """Return arrays of APGD.

    These are searches from a fixed start on the first 40 images, with the loss at every step; the
    number of the 200 images that withstand each attack, for some seeds; and DLR of random logits.
    """
    from autoattack import autopgd_base as reference

    network, (x, y) = DigitsNetwork(), torch_images()
    norms = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    out: dict[str, Any] = {}

    def counted(attack: Any) -> int:
        adversarial = attack.perturb(x, y)
        return int(((network(x).argmax(1) == y) & (network(adversarial).argmax(1) == y)).sum())

    for p, norm in norms.items():
        l1 = {"norm": norm, "eps": EPS[p], "use_largereps": p == "l1"}
        for loss in ("ce", "dlr"):
            attacks = [reference.APGDAttack(network, loss=loss, seed=i, **l1) for i in range(16)]
            out[f"robust_{p}_{loss}"] = [counted(attack) for attack in attacks]
        attacks = [reference.APGDAttack_targeted(network, seed=i, **l1) for i in range(3)]
        out[f"robust_{p}_targeted"] = [counted(attack) for attack in attacks]

    # L0_norm would count a pixel that differs by rounding after it was moved and moved back.
    reference.L0_norm = lambda d: (d.abs() > 1e-6).flatten(1).sum(1)
    looks: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recorded(images: torch.Tensor) -> torch.Tensor:
        looks.append((images.detach().clone(), network(images)))
        return looks[-1][1]

    x, y = x[:40], y[:40]
    runs = (("linf", "ce", 100), ("linf", "dlr", 100), ("l2", "ce", 100), ("l1", "dlr", 40))
    for p, loss, steps in runs:
        torch.manual_seed(0)
        looks.clear()
        attack = reference.APGDAttack(recorded, norm=norms[p], eps=EPS[p], loss=loss, n_iter=steps)
        attack.init_hyperparam(x)
        draw = torch.randn_like(x)
        start = x + draw + reference.L1_projection(x, draw, EPS[p])
        start = torch.where((start - x).abs() > 1e-6, start, x) if p == "l1" else None
        best, _, value, _ = attack.attack_single_run(x, y, start)
        cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
        value_of = cross_entropy if loss == "ce" else attack.dlr_loss
        run = {
            "start": looks[0][0].squeeze(1),
            "values": torch.stack([value_of(logits, y) for _, logits in looks]),
            "best": best.squeeze(1),
            "value": value,
        }
        out |= {f"{p}_{loss}_{name}": array.detach().numpy() for name, array in run.items()}

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 7)).astype("float32")
    labels, targets = (rng.integers(0, 7, 30) for _ in range(2))
    z, label, attack.y_target = (torch.from_numpy(a) for a in (logits, labels, targets))
    targeted = reference.APGDAttack_targeted.dlr_loss_targeted
    out |= {"logits": logits, "labels": labels, "targets": targets}
    return out | {"dlr": attack.dlr_loss(z, label), "targeted_dlr": targeted(attack, z, label)}


def fab() -> dict[str, Any]:
    """Return arrays of FAB.

    These are projections on random hyperplanes; the least distance towards each of nine targets in
    20 and in 100 steps, and without a target in 20 steps; and whether the whole attack breaks each
    of the 200 images.
    """
    from autoattack import fab_projections
    from autoattack.fab_pt import FABAttack_PT

    network, (x, y) = DigitsNetwork(), torch_images()
    rng = np.random.default_rng(0)
    points, slope = rng.random((60, 20)), rng.normal(size=(60, 20))
    points[rng.random(points.shape) < 0.2] = 0  # on the box's wall
    slope[rng.random(slope.shape) < 0.1] = 0
    value = rng.normal(size=60) * np.linspace(0.1, 8, 60)  # the last planes miss the box
    offset = (slope * points).sum(1) - value
    out: dict[str, Any] = {"points": points, "slope": slope, "value": value}
    for norm, eps in EPS.items():
        project = getattr(fab_projections, f"projection_{norm}")
        out[f"{norm}_step"] = project(*map(torch.from_numpy, (points, slope, offset)))
        for steps in (20, 100):
            kwargs = {"norm": norm.capitalize(), "n_iter": steps, "eps": eps, "targeted": True}
            attack, towards = FABAttack_PT(network, **kwargs), []
            for attack.target_class in range(2, 11):
                delta = (attack.attack_single_run(x, y, is_targeted=True) - x).flatten(1)
                towards.append(delta.norm(p=float(norm[1:]), dim=1))
            out[f"{norm}_distance_{steps}"] = torch.stack(towards)  # 0 stands for no find
            if steps == 20:
                delta = (attack.attack_single_run(x, y) - x).flatten(1)
                out[f"{norm}_untargeted"] = delta.norm(p=float(norm[1:]), dim=1)[None]
        out[f"{norm}_broken"] = network(attack.perturb(x, y)).argmax(1) != y
    return {k: np.asarray(v, "float32") for k, v in out.items()}


# The function of each attack, whose arrays are saved as references/NAME.npz.
MAKERS: dict[str, Any] = {"apgd": apgd, "fab": fab, "rays": rays, "square": square}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(MAKERS), metavar="NAME")
    parser.add_argument("--autoattack", type=Path, help="checkout of fra31/auto-attack")
    parser.add_argument("--rays", type=Path, help="checkout of uclaml/RayS")
    arguments = parser.parse_args()
    for checkout in (arguments.autoattack, arguments.rays):
        if checkout is not None:
            sys.path.insert(0, str(checkout))
    for name in arguments.names:
        np.savez_compressed(REFERENCES / f"{name}.npz", **MAKERS[name]())


if __name__ == "__main__":
    main()
