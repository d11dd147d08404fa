"""Training methods: `METHODS[name](network, threat=..., ...)` is a keras.Model to fit."""

from tfrobust.methods.adv import Adv
from tfrobust.methods.atlas import Atlas
from tfrobust.methods.base import RobustModel
from tfrobust.methods.jac import Jac
from tfrobust.methods.natural import Natural
from tfrobust.methods.trades import Trades
from tfrobust.methods.trades_jac import TradesJac

METHODS: dict[str, type[RobustModel]] = {
    "natural": Natural,
    "adv": Adv,
    "jac": Jac,
    "trades": Trades,
    "atlas": Atlas,
    "trades_jac": TradesJac,
}

__all__ = ["METHODS", "Adv", "Atlas", "Jac", "Natural", "RobustModel", "Trades", "TradesJac"]
