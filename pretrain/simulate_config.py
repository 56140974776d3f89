"""What is to be simulated: a recipe, the sizes of the clusters, a dataset that may only be told of, and the machine."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.cluster_model import MachineConfig
from pretrain.config import PretrainConfig

MOST_IMAGES, MOST_KB = 10**8, 1e6
"""Of a dataset that is told of: each image takes some 35 bytes of this machine's memory."""
MOST_GB = MOST_IMAGES * MOST_KB / 1e6
"""No such dataset is larger, and no cache need be."""


class SimulateConfig(PretrainConfig):
    """A recipe on clusters of several sizes: neither they nor its dataset need be there."""

    data: str | list[str] = Field(default="", description="dataset folder, path or URL; none: see num_images")
    run: str = Field(default="", description="not used")
    gpus: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(
        default=[8, 64, 256, 1024], min_length=1, description="sizes of the clusters, one worker a GPU"
    )
    samples_per_gpu: int | None = Field(
        default=None, ge=1, description="the global batch grows with the GPUs; none: the recipe's batch, divided"
    )
    num_images: int | None = Field(
        default=None, ge=2, le=MOST_IMAGES, description="without data: images of a dataset that is told of"
    )
    images_per_case: int = Field(
        default=1, ge=1, le=MOST_IMAGES, description="of that dataset; micle needs two or more"
    )
    images_per_shard: int = Field(default=8192, ge=1, le=MOST_IMAGES, description="of that dataset")
    kb_per_image: float = Field(
        default=31.0,  # so that a shard of these defaults has the 256 MB that the import aims at, of 256 px
        ge=0.001,
        le=MOST_KB,
        description="of that dataset, as stored; 31 at 256 px, and four times that at 512 px",
    )
    remote: bool | None = Field(
        default=None,
        description="whether shards come over a network into the cache of each node (loader.cache_gb); none: as data "
        "is, true for a dataset that is told of; false: a file system that all nodes mount, read image by image",
    )
    steps: int = Field(
        default=2000,
        ge=1,
        le=10**6,
        description="steps of an epoch that are replayed; of a shorter one all, and the next epoch; more where the "
        "loader looks further ahead",
    )
    step_s: list[Annotated[float, Field(ge=1e-6, le=1e6)]] = Field(
        default=[], description="seconds of a step of one worker alone with its share, one for each of gpus"
    )
    measure: bool = Field(default=False, description="time such steps here, of each share, on the device at hand")
    card: Literal["A10", "A100 40 GB", "A100 80 GB", "H100 SXM", "H200 SXM"] = Field(
        default="A100 80 GB", description="without step_s and measure: whose published rates say how fast a step is"
    )
    machine: MachineConfig = Field(default=MachineConfig(), description="the cluster, as it is assumed")
    out: str = Field(default="", description="JSON file for all figures, not written where none is given")

    @model_validator(mode="after")
    def _consistent(self) -> "SimulateConfig":
        if bool(self.data) == (self.num_images is not None):
            raise ValueError("give either data=DIR or num_images=N, the dataset to be replayed")
        if self.step_s and (self.measure or len(self.step_s) != len(self.gpus)):
            raise ValueError(f"step_s: {len(self.step_s)} for {len(self.gpus)} sizes; one each, and without measure")
        return self
