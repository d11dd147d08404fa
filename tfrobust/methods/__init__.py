"""Training methods: `METHODS[name](network, threat=..., ...)` returns a keras.Model to fit.

The import of a class registers it: a method's name is that of its file.
"""

from tfrobust.methods.adv import Adv as Adv
from tfrobust.methods.alp import Alp as Alp
from tfrobust.methods.atlas import Atlas as Atlas
from tfrobust.methods.averaging import AVERAGINGS as AVERAGINGS
from tfrobust.methods.averaging import Averaging as Averaging
from tfrobust.methods.averaging import Ema as Ema
from tfrobust.methods.averaging import Swa as Swa
from tfrobust.methods.awp import Awp as Awp
from tfrobust.methods.base import RobustModel as RobustModel
from tfrobust.methods.fat import Fat as Fat
from tfrobust.methods.fgsm_pgi import FgsmPgi as FgsmPgi
from tfrobust.methods.fgsm_reg import FgsmReg as FgsmReg
from tfrobust.methods.free import Free as Free
from tfrobust.methods.gkl import Gkl as Gkl
from tfrobust.methods.gradalign import GradAlign as GradAlign
from tfrobust.methods.iaat import Iaat as Iaat
from tfrobust.methods.jac import Jac as Jac
from tfrobust.methods.llr import Llr as Llr
from tfrobust.methods.mart import Mart as Mart
from tfrobust.methods.mma import Mma as Mma
from tfrobust.methods.natural import Natural as Natural
from tfrobust.methods.nfgsm import Nfgsm as Nfgsm
from tfrobust.methods.nuat import Nuat as Nuat
from tfrobust.methods.oat import Oat as Oat
from tfrobust.methods.squeeze import Squeeze as Squeeze
from tfrobust.methods.trades import Trades as Trades
from tfrobust.methods.trades_jac import TradesJac as TradesJac
from tfrobust.registry import by_file

METHODS = by_file(RobustModel, globals())
