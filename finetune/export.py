"""`python -m finetune export MODEL format=onnx|torch out=DIR`: a fine-tuned model for programs without Manyview.

MODEL is a results folder or its model/. `out` receives model.onnx, or model.pt2 of torch.export, for any batch size,
and model.json, which says what an image must go through before, what comes out, how far the file's answers were from
the model's, and how long one image takes on this machine. Normalisation and temperature are inside of the file.

Loading a .pt2 file can run code: load only those that you wrote. An .onnx file holds none.
Shapes: B batch, S side in px, K labels, M numbers an image (logits, and an attention score where there is one).
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from clusters.command import describe
from clusters.config import Config, InputError, absolute, load_config
from clusters.storage import Folder

if TYPE_CHECKING:
    from torch import nn

    from finetune.model import Model

CARD = "model.json"
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
ONNX_OPSET = 18
COMPARED_BATCHES = (1, 3)
MOST_APART = 1e-3
"""Of logits whose largest is 1; rounding leaves some 1e-6."""

Run = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


class ExportConfig(Config):
    """What is exported."""

    model: str = Field(description="results folder of python -m finetune, or its model/; path or URL")
    out: str = Field(description="folder for the file and its model.json; path or URL")
    format: Literal["onnx", "torch"] = Field(default="onnx", description="onnx: ONNX; torch: torch.export")

    @field_validator("model", "out")
    @classmethod
    def _absolute(cls, location: str) -> str:
        return absolute(location)


def usage() -> str:
    """For --help."""
    return f"usage: {__doc__}\nkey                                  default          meaning\n{describe(ExportConfig)}"


def run(argv: Sequence[str]) -> None:
    """The command."""
    if argv[0].partition("=")[0] in ExportConfig.model_fields:
        raise InputError("export takes a model: python -m finetune export MODEL format=onnx out=DIR")
    export(load_config(ExportConfig, [f"model={argv[0]}", *argv[1:]]))


def export(config: ExportConfig) -> None:
    """Write the file, compare its answers with the model's, and write its card last.

    Raises InputError for a model that is none, a network that the format cannot take, and answers that differ.
    """
    import torch

    from finetune.inference import for_inference, single_image_latency
    from finetune.model_folder import load_model

    out, name = Folder(config.out), FILES[config.format]
    model = load_model(config.model)
    network = _with_probabilities(model)
    pixels = np.random.default_rng(0).random((max(COMPARED_BATCHES), 3, model.card.size_px, model.card.size_px))
    images = pixels.astype(np.float32)
    with torch.inference_mode():
        expected = [value.numpy() for value in network(torch.from_numpy(images))]
    for_inference(model)  # in place, so of the exported network too
    write = _onnx if config.format == "onnx" else _torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content, answer = write(network, model.card.size_px)
    except Exception as error:  # exporters refuse with errors of any kind
        raise InputError(
            f"{config.model}: {model.card.encoder.name} cannot be exported as {config.format} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); try the other format"
        ) from error
    apart = _apart(answer, images, expected)
    if not apart <= MOST_APART:
        raise InputError(
            f"{config.model}: the {config.format} file's answers are {apart:.2g} from the model's; not kept"
        )
    out.write(name, content)
    latency = [single_image_latency(model, torch.device("cpu")), _latency(answer, images[:1], config.format)]
    told = {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content), **_card(model)}
    out.write_json(CARD, {**told, "largest_difference": apart, "latency": latency})
    times = f"one image {latency[1]['median_ms']:g} ms, in torch {latency[0]['median_ms']:g} ms"
    print(f"{out.file(name)}: {len(content) / 1e6:.1f} MB, answers within {apart:.1g} of the model's; {times}")


def _with_probabilities(model: "Model") -> "nn.Module":
    """RGB images in 0..1, (B, 3, S, S), to the numbers (B, M) and, of labels, the probabilities (B, K)."""
    from torch import Tensor, nn

    temperature, num_labels = model.card.decision.temperature, len(model.card.labels)
    softmax, sigmoid = model.one_of_several, model.yes_or_no == model.card.labels

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            numbers_BM = self.model(images)
            logits_BK = numbers_BM[:, :num_labels] / temperature
            if not sigmoid:
                return (numbers_BM,)
            return numbers_BM, logits_BK.softmax(1) if softmax else logits_BK.sigmoid()

    return Exported().eval()


def _onnx(network: "nn.Module", size_px: int) -> tuple[bytes, Run]:
    import onnxruntime
    import torch

    example = torch.zeros(2, 3, size_px, size_px)
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=["numbers", "probabilities"][: len(network(example))],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: session.run(None, {"images": images})  # type: ignore[return-value]


def _torch(network: "nn.Module", size_px: int) -> tuple[bytes, Run]:
    import torch

    example = torch.zeros(2, 3, size_px, size_px)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    module = program.module()

    def answer(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [value.numpy() for value in module(torch.from_numpy(images))]

    return buffer.getvalue(), answer


def _apart(answer: Run, images: NDArray[np.float32], expected: list[NDArray[np.float32]]) -> float:
    """The largest difference of any output, of one image and of several, where the largest logit is 1 or more."""
    scale = max(1.0, *(float(np.abs(values).max()) for values in expected))
    differences = [
        np.abs(found - values[:size]).max() / scale
        for size in COMPARED_BATCHES
        for found, values in zip(answer(images[:size]), expected, strict=True)
    ]
    return float(np.max(differences))


def _latency(answer: Run, image: NDArray[np.float32], format_: str) -> dict[str, Any]:
    from finetune.inference import timed

    return {
        "device": "cpu",
        "runs": "onnxruntime" if format_ == "onnx" else "torch.export",
        **timed(lambda: answer(image)),
    }


def _card(model: "Model") -> dict[str, Any]:
    """What a program must do before and after, for a person and for a machine."""
    card = model.card
    short_side = card.processing.get("short_side_px")
    shrunk = (
        f"where the short side is more than {short_side} px, shrink to that, averaging over areas; as JPEG of quality "
        f"{card.processing.get('jpeg_quality')} without chroma subsampling, and back"
    )
    sigmoid = "sigmoid" if not model.one_of_several else "softmax"
    return {
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", 3, card.size_px, card.size_px]},
        "before": [
            "8-bit sRGB, upright by its EXIF orientation; grey as three equal channels; transparency on white",
            *([shrunk] if short_side else []),
            f"cut the largest centred square and resize it to {card.size_px} px, averaging over areas where that "
            "shrinks it, bilinear else",
            "red, green, blue, as numbers in 0..1 (divided by 255)",
        ],
        "inside": {"mean": list(card.mean), "std": list(card.std), "temperature": card.decision.temperature},
        "outputs": {
            "numbers": "before the temperature, in the order of the labels",
            **(
                {"probabilities": f"{sigmoid} of the logits at the temperature"}
                if model.yes_or_no == card.labels
                else {}
            ),
        },
        "labels": list(card.labels),
        "classes": list(card.classes),
        "thresholds": card.decision.thresholds,
        "pooling": card.pooling,
        "task": card.task,
        "model": card.fingerprint,
        "made_from": card.made_from,
    }
