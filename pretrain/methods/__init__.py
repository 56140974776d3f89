"""The methods, one file and one line each."""

from typing import Annotated

from pydantic import Field

from pretrain.methods.micle import MICLe, MICLeConfig
from pretrain.methods.simclr import SimCLR, SimCLRConfig

METHODS = {"simclr": SimCLR, "micle": MICLe}

AnyStage = Annotated[SimCLRConfig | MICLeConfig, Field(discriminator="method")]
