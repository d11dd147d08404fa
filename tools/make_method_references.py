"""Make the frozen references of tests/parity/test_methods.py with the authors' code of the methods.

    python tools/make_method_references.py NAME=DIR... NAME...

NAME is a method, and DIR a checkout of its repository, which the function of the method names. For
a method whose code does not run in torch, its function has the formula, and NAME needs no DIR. The
tool needs torch (a CPU is enough), unlike tfrobust itself.

Where the authors' step is part of a script, its lines are run as they stand (`lines`). All runs are
in float64, on the network, images and noise of tests/parity/methods.py.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd import Variable

sys.path.insert(0, str(Path(__file__).parents[1]))
from torch_methods import (
    ADV,
    NORMAL,
    UNIFORM,
    BatchNorm,
    Conditional,
    Network,
    Noise,
    X,
    Y,
    lines,
    loaded,
    optimizer,
)

from tests.parity import methods as shared

EPS, STEP_SIZE, STEPS = shared.EPS, shared.STEP_SIZE, shared.STEPS
BETA = 3.0
ATTACK = {"step_size": STEP_SIZE, "epsilon": EPS, "perturb_steps": STEPS}


def trades(folder: Path) -> dict[str, Any]:
    """github.com/yaodongyu/TRADES (6e8e11b)."""
    network = Network()
    loss_of = loaded(folder / "trades.py")["trades_loss"]
    with Noise():
        loss = loss_of(network, X, Y, optimizer(network), beta=BETA, **ATTACK)
    return network.result(loss, adv=network.seen[-2])


def mart(folder: Path) -> dict[str, Any]:
    """github.com/YisenWang/MART (2d83e17)."""
    network = Network()
    loss_of = loaded(folder / "mart.py")["mart_loss"]
    with Noise():
        loss = loss_of(network, X, Y, optimizer(network), beta=BETA, **ATTACK)
    return network.result(loss, adv=network.seen[-1])


def fat(folder: Path) -> dict[str, Any]:
    """github.com/zjfheart/Friendly-Adversarial-Training (80a0640), without jitter."""
    network = Network()
    names = {"torch": torch, "np": np, "nn": torch.nn, "F": F}
    # Its images are of one size; `models`, its networks, are not needed.
    code = (("3, 32, 32", "3, 8, 8"), ("from models import *", ""))
    earlystop = loaded(folder / "earlystop.py", *code, **names)["earlystop"]
    no_jitter = mock.patch.object(torch, "randn", torch.zeros)
    with Noise(), no_jitter:
        adv, target, clean, _ = earlystop(
            network, X, Y, STEP_SIZE, EPS, STEPS, 1, "uniform_randominit", "cent", omega=0
        )
    # The images come out in another order.
    order = [next(k for k, image in enumerate(clean) if torch.equal(image, x)) for x in X]
    network.train()
    loss = torch.nn.CrossEntropyLoss(reduction="mean")(network(adv), target)
    return network.result(loss, adv=adv[order])


def trades_awp(folder: Path) -> dict[str, Any]:
    """github.com/csdongxian/AWP (a7acf5d), on images that are given."""
    network, proxy = Network(), Network()
    awp = loaded(folder / "trades_AWP" / "utils_awp.py")["TradesAWP"]
    awp = awp(network, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), 0.05)
    args = SimpleNamespace(awp_warmup=0, beta=BETA)
    scope = lines(
        folder / "trades_AWP" / "train_trades_cifar.py",
        "model.train()",
        "loss = loss_natural + args.beta * loss_robust",
        model=network, optimizer=optimizer(network), awp_adversary=awp, args=args,
        x_adv=ADV, x_natural=X, target=Y, epoch=0,
    )  # fmt: skip
    return network.result(scope["loss"])


def awp(folder: Path) -> dict[str, Any]:
    """github.com/csdongxian/AWP (a7acf5d), on images that are given."""
    network, proxy = Network(), Network()
    perturbing = loaded(folder / "AT_AWP" / "utils_awp.py")["AdvWeightPerturb"]
    perturbing = perturbing(network, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), 0.05)
    network.train()
    perturbing.perturb(perturbing.calc_awp(inputs_adv=ADV, targets=Y))
    return network.result(torch.nn.CrossEntropyLoss()(network(ADV), Y))


def nfgsm(folder: Path) -> dict[str, Any]:
    """github.com/pdejorge/N-FGSM (0a9e4f0)."""
    network = Network()

    def clamp(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return torch.max(torch.min(x, high), low)

    size = EPS * torch.ones(3, 1, 1)
    box = {"lower_limit": torch.zeros(3, 1, 1), "upper_limit": torch.ones(3, 1, 1)}
    channels = UNIFORM[0].transpose(0, 1)  # it draws the noise channel by channel
    scope = lines(
        folder / "train.py", "eta = torch.zeros_like(X)", "# Training step",
        model=network, X=X, y=Y, epsilon=size, alpha=size,
        args=SimpleNamespace(unif=2, clip=-1), attack_utils=SimpleNamespace(clamp=clamp, **box),
        uniform=channels,
    )  # fmt: skip
    loss = F.cross_entropy(scope["output"], Y)
    return network.result(loss, adv=network.seen[-1])


def free(folder: Path) -> dict[str, Any]:
    """github.com/mahyarnajibi/FreeAdversarialTraining (e185c84), three replays of one batch.

    The images are kept from the walls of the box, where its gradient in delta is 0, unlike ours.
    """
    network, delta, images = Network(), torch.zeros_like(X), 0.2 + 0.6 * X
    sgd = torch.optim.SGD(network.parameters(), lr=0.05)
    meter = SimpleNamespace(update=lambda *_: None)
    adv = SimpleNamespace(fgsm_step=EPS, clip_eps=EPS)
    for _ in range(3):
        lines(
            folder / "main_free.py",
            "noise_batch = Variable",
            "optimizer.step()",
            Variable=torch.autograd.Variable, global_noise_data=delta, input=images, target=Y,
            mean=torch.zeros(3, 1, 1), std=torch.ones(3, 1, 1), model=network, optimizer=sgd,
            criterion=F.cross_entropy, accuracy=lambda *_, **__: ([0.0], [0.0]), losses=meter,
            top1=meter, top5=meter, configs=SimpleNamespace(ADV=adv),
            fgsm=lambda gradient, step: step * torch.sign(gradient),
        )  # fmt: skip
    return network.result(delta=delta)


def gradalign(folder: Path) -> dict[str, Any]:
    """github.com/tml-epfl/understanding-fast-adv-training (ceed494)."""
    network = Network()
    amp = SimpleNamespace()
    with mock.patch.dict(sys.modules, {"apex": SimpleNamespace(amp=amp), "apex.amp": amp}):
        utils = SimpleNamespace(**loaded(folder / "utils.py"))
    args = SimpleNamespace(grad_align_cos_lambda=0.2, fgsm_alpha=1.0, dataset="cifar10")
    names = {
        "model": network, "X": X, "y": Y, "eps": EPS, "half_prec": False, "double_bp": True,
        "args": args, "utils": utils, "clamp": utils.clamp, "opt": None, "iteration": 0,
        "l2_norm_batch": utils.l2_norm_batch, "get_input_grad": utils.get_input_grad,
        "loss_function": F.cross_entropy, "delta": torch.zeros_like(X, requires_grad=True),
        "data": SimpleNamespace(shapes_dict={"cifar10": [1]}),
    }  # fmt: skip
    args.batch_size = 1
    first = "X_adv = clamp(X + delta, 0, 1)"
    names |= lines(
        folder / "train.py", first, "delta.data = clamp(X + delta.data, 0, 1) - X", **names
    )
    names |= lines(folder / "train.py", "delta = delta.detach()", "loss += reg", **names)
    return network.result(names["loss"], adv=network.seen[1], noisy=network.seen[2])


def squeeze(folder: Path) -> dict[str, Any]:
    """github.com/qizhangli/ST-AT (82fc69f).

    Where no example of a batch needs its image itself, the code swaps the gradients of the two
    points but not the points. Here it takes the other branch, which swaps both.
    """
    network = Network()
    utils = loaded(folder / "utils.py")
    stat = loaded(
        folder / "losses.py", ("from utils import *", ""), ("nat_need.sum() != 0", "True"), **utils
    )["stat_loss"]
    with mock.patch.object(torch.nn, "BatchNorm2d", BatchNorm), Noise():
        loss, *_ = stat(network, X, Y, None, STEP_SIZE, EPS, STEPS, BETA, None)
    collaborative, _, adv = network.seen[-3:]
    return network.result(loss, adv=adv, collaborative=collaborative)


def mma(folder: Path) -> dict[str, Any]:
    """github.com/BorealisAI/mma_training (328e2e5), which needs advertorch (e063e34) on the path.

    The box is [-1, 2], whose walls no image meets: they do not clip the images that they train on.
    """
    sys.path.insert(0, str(folder))
    sys.modules["torchvision"] = mock.Mock()  # advertorch wants it for what is not used here
    import anpgd
    from advertorch.attacks import LinfPGDAttack
    from advertorch.loss import soft_logit_margin_loss
    from trainer import Trainer

    box = {"clip_min": -1.0, "clip_max": 2.0}
    anpgd.bisection_search = functools.partial(anpgd.bisection_search, **box)

    network, made = Network(), {}

    def soft(reduction: str) -> Any:
        return lambda logits, y: soft_logit_margin_loss(logits, y, reduction=reduction)

    with Noise():
        pgd = LinfPGDAttack(network, soft("sum"), 0.0, STEPS, 0.0, rand_init=True, **box)
        search = anpgd.ANPGD(pgd, 0.05, 1.05 * 0.1, 10, 2.5, soft("none"))
        trainer = Trainer(
            network, "cpu", F.cross_entropy, optimizer(network), SimpleNamespace(targets=Y),
            lambda z, y: F.cross_entropy(z, y, reduction="none"), 0.1, adversary=search,
        )  # fmt: skip
        network.train()
        made["margin"] = trainer.train_one_batch(X.clone(), torch.arange(len(X)), Y)[2]
    return network.result(adv=network.seen[-1]) | {"margin": made["margin"].detach().numpy()}


def gkl(folder: Path) -> dict[str, Any]:
    """github.com/jiequancui/DKL (c5e8ad2), DKLv2, on images that are given.

    Every class mean holds the same numbers in another order, so that scaling them over the batch is
    scaling them for each example.
    """
    script = folder / "DKLv2" / "Adv-training-dkl" / "train_dkl_cifar10.py"
    made = lines(
        script,
        "def dkl_loss",
        "    return x_adv",
        device="cpu",
        optim=torch.optim,
        Variable=torch.autograd.Variable,
    )
    network, prior = Network(), torch.from_numpy(shared.class_means())[Y]
    with Noise():
        adv = made["perturb_input"](
            network, X, STEP_SIZE, EPS, STEPS, "l_inf", 1.0, 0.0, 1.0, CLASS_PRIOR=prior
        )
    network.train()
    logits_adv, logits_nat = network(adv), network(X)
    loss = F.cross_entropy(logits_nat, Y)
    loss = loss + made["dkl_loss"](
        logits_adv, logits_nat, CLASS_PRIOR=prior, alpha=4.0, beta=20.0, gamma=0.2
    )
    return network.result(loss, adv=adv)


def jac(folder: Path) -> dict[str, Any]:
    """github.com/facebookresearch/jacobian_regularizer (32bb044), with fixed projections."""
    network, x = Network(), X.clone().requires_grad_()
    penalty = loaded(folder / "jacobian" / "jacobian.py")["JacobianReg"](n=1)
    penalty._random_vector = lambda C, B: torch.from_numpy(shared.projections())
    logits = network(x)
    return network.result(F.cross_entropy(logits, Y) + penalty(x, logits))


def iaat(folder: Path) -> dict[str, Any]:
    """github.com/yogeshbalaji/Instance_Adaptive_Adversarial_Training (49f5f14), warmed up."""
    network = Network()
    box = ("clamp=(0, 1)", "clamp=(-1, 2)")  # it does not clip the start: here no wall is met
    attacker = loaded(folder / "attacks" / "pgd_adaptive.py", box)["PGDAttackerAdaptive"]()
    args = SimpleNamespace(
        warmup=0, attack_steps=STEPS, attack_lr=STEP_SIZE, gamma=0.02, beta=0.1, attack_eps=EPS
    )
    radii = torch.from_numpy(shared.radii().astype("float64"))
    me = SimpleNamespace(model=network, args=args, epoch=1, attacker=attacker, epsilon_memory=radii)
    script = folder / "trainers" / "trainer_adaptive.py"
    select = lines(script, "def epsilon_select", "return epsilon")["epsilon_select"]
    with Noise():
        eps = select(me, X, Y, torch.arange(len(X)))
        rate = torch.clamp(eps / (0.5 * STEPS), min=STEP_SIZE)
        adv = attacker.attack(X, Y, network, STEPS, rate, eps, random_init=True)
    out = network.result(F.cross_entropy(network(adv), Y), adv=adv)
    return out | {"radius": eps.numpy()}


def nuat(folder: Path) -> dict[str, Any]:
    """github.com/val-iisc/NuAT (8962290), at a step that ascends the nuclear norm."""
    network, script = Network(), folder / "CIFAR10" / "NuAT_cifar10.py"
    names = {"Variable": Variable, "zero_gradients": lambda x: None, "loss": F.cross_entropy}
    names |= {"TRAIN_BATCH_SIZE": len(X), "Nuc_reg": 4.5, "B_val": 127.5 * EPS, "l_ce": 1.0}
    names |= {"Feps": 255 * EPS, "counter": 1, "model": network, "data": X, "target": Y}
    names |= lines(script, "def NucAttack", "return img", **names)
    signs = mock.patch.object(torch, "rand_like", lambda x: 0.5 - 0.5 * torch.sign(NORMAL[0]))
    with signs:
        names |= lines(script, "out  = model(data)", "adv_data = NucAttack(", **names)
    network.train()
    delta = torch.clamp(names["adv_data"] - X, -EPS, EPS)  # 8/255 in the script
    names["adv_data"] = torch.clamp(X + delta, 0, 1)
    names |= lines(script, "adv_out  = model(adv_data)", "cost = l_ce", **names)
    return network.result(names["cost"], adv=names["adv_data"])


def fgsm_pgi(folder: Path) -> dict[str, Any]:
    """github.com/jiaxiaojunQAQ/FGSM-PGI (fc15cfe), without label smoothing, at momentum 0."""
    network, script = Network(), folder / "FGSM_MEP.py"
    prior = EPS * torch.sign(NORMAL[0])
    names = {
        "model": network, "X": X, "y": Y, "delta": prior.clone(), "next_delta": prior.clone(),
        "momentum": torch.zeros_like(X), "Variable": Variable, "alpha": torch.tensor(EPS),
        "epsilon": torch.tensor(EPS), "lower_limit": torch.tensor(0.0),
        "upper_limit": torch.tensor(1.0),
        "args": SimpleNamespace(factor=1.0, momentum_decay=0.3, lamda=10),
        "clamp": lambda x, low, high: torch.max(torch.min(x, high), low),
    }  # fmt: skip
    names |= lines(script, "def _label_smoothing", "return result", **names)
    names |= lines(script, "def LabelSmoothLoss", "return loss", **names)
    names |= lines(script, "label_smoothing = Variable(", "loss = LabelSmoothLoss(output", **names)
    noisy, adv = network.seen
    return network.result(names["loss"], adv=adv, noisy=noisy, prior=names["next_delta"])


def oat(folder: Path) -> dict[str, Any]:
    """github.com/VITA-Group/Once-for-All-Adversarial-Training (2615279), with one BatchNorm."""
    network, strength = Network(), torch.from_numpy(shared.strengths()).double()
    zeros = int((strength == 0).sum())
    names = lines(
        folder / "OAT.py", "logits = model(imgs, _lambda", "loss = torch.mean",
        uniform=UNIFORM[:, zeros:], model=Conditional(network), imgs=X, labels=Y, _lambda=strength,
        _lambda_flat=strength, num_zeros=zeros, idx2BN=None,
        attacker=loaded(folder / "attacks" / "pgd.py")["PGD"](EPS, STEPS, STEP_SIZE, use_FiLM=True),
        args=SimpleNamespace(efficient=True, use2BN=False),
        **loaded(folder / "utils" / "context.py"),
    )  # fmt: skip
    return network.result(names["loss"], adv=torch.cat([X[:zeros], names["imgs_adv"]]))


def alp(_: None) -> dict[str, Any]:
    """Written here: the authors' code (tensorflow/models) is for TensorFlow 1."""
    network = Network()
    logits = network(torch.cat([X, ADV]))
    loss = F.cross_entropy(logits, torch.cat([Y, Y]))
    clean, adv = logits.chunk(2)
    return network.result(loss + 0.5 * torch.mean((clean - adv) ** 2))


def llr(_: None) -> dict[str, Any]:
    """Written here: the authors' code (google-deepmind/local_linearity_regularizer) is for TF 1."""
    # The statistics of x serve at x' too.
    network, x = Network(), X.clone().requires_grad_()
    delta = ADV - X
    normalize, kept = F.batch_norm, []

    def keeping(z: torch.Tensor, *arguments: Any) -> torch.Tensor:
        kept.append((z.mean((0, 2, 3)), z.var((0, 2, 3), unbiased=False)))
        return normalize(z, *arguments)

    with mock.patch.object(F, "batch_norm", keeping):
        clean = F.cross_entropy(network(x), Y, reduction="none")
    (slope,) = torch.autograd.grad(clean.sum(), x, create_graph=True)
    statistics: Iterator[Any] = iter(kept)

    def reusing(
        z: torch.Tensor, _m: Any, _v: Any, w: Any, b: Any, _t: Any, _d: Any, eps: float
    ) -> Any:
        mean, variance = (s[:, None, None] for s in next(statistics))
        unit = (z - mean) / torch.sqrt(variance + eps)
        return unit * w[:, None, None] + b[:, None, None]

    network.eval()
    with mock.patch.object(F, "batch_norm", reusing):
        adversarial = F.cross_entropy(network(ADV), Y, reduction="none")
    rise = (delta * slope).flatten(1).sum(1)  # that of the linear approximation
    loss = clean + 4.0 * (adversarial - clean - rise).abs() + 3.0 * rise.abs()
    return network.result(loss.mean())


MAKERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    made.__name__: made
    for made in (
        alp, awp, fat, fgsm_pgi, free, gkl, gradalign, iaat, jac, llr, mart, mma, nfgsm, nuat,
        oat, squeeze, trades, trades_awp,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+", metavar="NAME[=DIR]", help=", ".join(MAKERS))
    for argument in parser.parse_args().methods:
        name, _, folder = argument.partition("=")
        arrays = MAKERS[name](Path(folder) if folder else None)
        arrays = {k: np.asarray(v, "float32") for k, v in arrays.items()}
        shared.REFERENCES.mkdir(exist_ok=True)
        np.savez_compressed(shared.REFERENCES / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
