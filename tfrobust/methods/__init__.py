"""Training methods: `METHODS[name](network, threat=..., ...)` returns a keras.Model to fit."""

from tfrobust.methods.adv import Adv
from tfrobust.methods.alp import Alp
from tfrobust.methods.atlas import Atlas
from tfrobust.methods.awp import Awp
from tfrobust.methods.base import RobustModel
from tfrobust.methods.fat import Fat
from tfrobust.methods.fgsm_reg import FgsmReg
from tfrobust.methods.free import Free
from tfrobust.methods.gkl import Gkl
from tfrobust.methods.gradalign import GradAlign
from tfrobust.methods.iaat import Iaat
from tfrobust.methods.jac import Jac
from tfrobust.methods.llr import Llr
from tfrobust.methods.mart import Mart
from tfrobust.methods.mma import Mma
from tfrobust.methods.natural import Natural
from tfrobust.methods.nfgsm import Nfgsm
from tfrobust.methods.oat import Oat
from tfrobust.methods.squeeze import Squeeze
from tfrobust.methods.trades import Trades
from tfrobust.methods.trades_jac import TradesJac

METHODS: dict[str, type[RobustModel]] = {
    "natural": Natural,
    "adv": Adv,
    "jac": Jac,
    "trades": Trades,
    "atlas": Atlas,
    "trades_jac": TradesJac,
    "alp": Alp,
    "awp": Awp,
    "fat": Fat,
    "fgsm_reg": FgsmReg,
    "free": Free,
    "gkl": Gkl,
    "gradalign": GradAlign,
    "iaat": Iaat,
    "llr": Llr,
    "mart": Mart,
    "mma": Mma,
    "nfgsm": Nfgsm,
    "oat": Oat,
    "squeeze": Squeeze,
}

__all__ = [
    "METHODS",
    "Adv",
    "Alp",
    "Atlas",
    "Awp",
    "Fat",
    "FgsmReg",
    "Free",
    "Gkl",
    "GradAlign",
    "Iaat",
    "Jac",
    "Llr",
    "Mart",
    "Mma",
    "Natural",
    "Nfgsm",
    "Oat",
    "RobustModel",
    "Squeeze",
    "Trades",
    "TradesJac",
]
