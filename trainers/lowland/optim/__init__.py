"""Optimizers that look for flat minima; torch alone."""

from lowland.optim.base import LayoutOptimizer
from lowland.optim.critical import CriticalGradients, CriticalMomenta
from lowland.optim.diloco import DiLoCo
from lowland.optim.ema import EMA
from lowland.optim.layers import evaluation_weights, layers
from lowland.optim.layout import Fragment, Gradients, Layout, Parameter, Segment
from lowland.optim.lion import Lion
from lowland.optim.lookbehind import Lookbehind
from lowland.optim.mixed import Mixed
from lowland.optim.nowcast import Nowcast
from lowland.optim.owners import Owners
from lowland.optim.passes import Evaluations, MultiPass, frozen_statistics
from lowland.optim.point import OwnWeights, Point, Weights
from lowland.optim.ranks import Ranks
from lowland.optim.rotated import RotatedAdam
from lowland.optim.sam import SAM
from lowland.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from lowland.optim.sgd import SGD
from lowland.optim.skipping import skips_on_device
from lowland.optim.soap import SOAP
from lowland.optim.suggest import Suggestion, suggest_lr
from lowland.optim.torque import TAM, AdaTAM, AdaTAMW
from lowland.optim.weight_sharing import WeightSharing
from lowland.optim.whole import Whole
from lowland.optim.wrapper import Wrapper, create_state, shared_state

__all__ = [
    "EMA",
    "SAM",
    "SGD",
    "SOAP",
    "TAM",
    "AdaTAM",
    "AdaTAMW",
    "CriticalGradients",
    "CriticalMomenta",
    "DiLoCo",
    "Evaluations",
    "Fragment",
    "Gradients",
    "Layout",
    "LayoutOptimizer",
    "Lion",
    "Lookbehind",
    "Mixed",
    "MultiPass",
    "Nowcast",
    "OwnWeights",
    "Owners",
    "Parameter",
    "Point",
    "Ranks",
    "RotatedAdam",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Segment",
    "Suggestion",
    "WeightSharing",
    "Weights",
    "Whole",
    "Wrapper",
    "create_state",
    "evaluation_weights",
    "frozen_statistics",
    "layers",
    "shared_state",
    "skips_on_device",
    "suggest_lr",
]
