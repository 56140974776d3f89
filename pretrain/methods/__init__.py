"""The methods, one file and one line each."""

from typing import Annotated

from pydantic import Field

from pretrain.methods.byol import BYOL, BYOLConfig
from pretrain.methods.micle import MICLe, MICLeConfig
from pretrain.methods.moco_v3 import MoCoV3, MoCoV3Config
from pretrain.methods.simclr import SimCLR, SimCLRConfig

METHODS = {"simclr": SimCLR, "micle": MICLe, "moco_v3": MoCoV3, "byol": BYOL}

AnyStage = Annotated[SimCLRConfig | MICLeConfig | MoCoV3Config | BYOLConfig, Field(discriminator="method")]
