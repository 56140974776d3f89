"""Data that several tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from data.dataset import Dataset, open_dataset
from data.shards import write_dataset
from data.sources import read_raw, synthetic
from finetune.config import FinetuneConfig
from tests.browser import chromium
from tests.ranks import Ranks

# Ray in this process goes by what it finds when it is first imported: with a token, as everywhere. Without one it would
# take a cluster that asks for it for broken, and the other way round.
os.environ.setdefault("RAY_AUTH_MODE", "token")

# No test goes online for a login that this machine has.
for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
    os.environ.pop(name, None)
os.environ |= {"NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull}

# A shell starts what it runs in the background deaf to Ctrl-C, and processes started here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are hidden, from processes of the tests too, unless theirs are asked for: two sums in two orders differ."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave the user's cache alone."""
    os.environ["MANYVIEW_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is not there")
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket, and an environment as a user of another S3 than Amazon's has it."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="lab")
        yield "s3://lab"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 synthetic cases of 48 px in three shards, with every split; not to be altered."""
    out = tmp_path_factory.mktemp("synthetic") / "dataset"
    config = synthetic.Options(
        source="synthetic", out=str(out), num_cases=60, size_px=48, images_per_shard=50, num_processes=1
    )
    write_dataset(read_raw(config), config)
    return open_dataset(str(out))


@pytest.fixture(scope="session")
def finetuned(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """A finished run of a linear head on a small encoder, without baselines; its folder is not to be altered."""
    from finetune.run import finetune
    from tests.finetune_runs import recipe, write_encoder

    folder = tmp_path_factory.mktemp("finetuned")
    encoder = write_encoder(folder / "encoder", synthetic_dataset)
    config = recipe(synthetic_dataset, encoder, folder / "out", head="linear", bootstrap={"resamples": 20})
    finetune(config)
    return config


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two real gloo processes."""
    two = Ranks()
    yield two
    two.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real headless Chromium for the tests of a file; its loop of events ends with them."""
    with chromium() as found:
        yield found
