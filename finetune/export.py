"""`python -m finetune export MODEL format=onnx|torch out=DIR`: a fine-tuned model for programs without Manyview.

MODEL is a results folder or its model/. `out` receives model.onnx, or model.pt2 of torch.export, for any batch size,
and its card, model.onnx.json or model.pt2.json, which says what an image must go through before, what comes out, how
far the file's answers were from the model's, how long one image takes on this machine, and which data and licences bind
its use. Inside of the file are normalisation, the temperature of probabilities and the scale of predicted numbers. Both
formats fit into one folder.

Loading a .pt2 file can run code: load only those that you wrote. An .onnx file holds none.
Shapes: B batch, S side in px, K labels with a probability, R numbers that are predicted, M = K + R logits an image
(and an attention score where there is one).
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

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
ONNX_OPSET = 18
COMPARED_BATCHES = (1, 3)
COMPARED_ON = "equal input pixels"
MOST_APART = 1e-3
"""Of an output whose largest value is 1; rounding leaves some 1e-6."""

Run = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


class ExportConfig(Config):
    """What is exported."""

    model: str = Field(description="results folder of python -m finetune, or its model/; path or URL")
    out: str = Field(description="folder for the file and its card; path or URL")
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
    network = _with_answers(model)
    pixels = np.random.default_rng(0).random((max(COMPARED_BATCHES), 3, model.card.size_px, model.card.size_px))
    images = pixels.astype(np.float32)
    with torch.inference_mode():
        expected = [value.numpy() for value in network(torch.from_numpy(images))]
    for_inference(model)  # in place, so of the exported network too
    write = _onnx if config.format == "onnx" else _torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content, answer = write(network, model.card.size_px, list(_outputs(model)))
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
    compared = {"largest_difference": apart, "compared_on": COMPARED_ON}
    out.write_json(f"{name}.json", {**told, **compared, "latency": latency})
    times = f"one image {latency[1]['median_ms']:g} ms, in torch {latency[0]['median_ms']:g} ms"
    within = f"within {apart:.1g} of the model's on {COMPARED_ON}"
    print(f"{out.file(name)}: {len(content) / 1e6:.1f} MB, answers {within}; {times}")


def _with_answers(model: "Model") -> "nn.Module":
    """RGB images in 0..1, (B, 3, S, S), to what `_outputs` names."""
    import torch
    from torch import Tensor, nn

    temperature, num_labels = model.card.decision.temperature, len(model.yes_or_no)
    softmax, scales = model.one_of_several, _scales(model)

    class Exported(nn.Module):
        mean_R: Tensor
        scale_R: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            for name in ("mean", "scale") if scales else ():
                self.register_buffer(f"{name}_R", torch.tensor([told[name] for told in scales.values()]))

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            logits_BM = self.model(images)
            answers = [logits_BM]
            if num_labels:
                logits_BK = logits_BM[:, :num_labels] / temperature
                answers.append(logits_BK.softmax(1) if softmax else logits_BK.sigmoid())
            if scales:
                answers.append(logits_BM[:, num_labels : num_labels + len(scales)] * self.scale_R + self.mean_R)
            return tuple(answers)

    return Exported().eval()


def _scales(model: "Model") -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the predicted numbers in training, which their logits are on the scale of."""
    told = model.task.parts[-1].describe()
    names = model.task.number_names
    return {name: {"mean": told["mean"][k], "scale": told["scale"][k]} for k, name in enumerate(names)}


def _outputs(model: "Model") -> dict[str, dict[str, Any]]:
    """The file's outputs in their order, each (B, columns): what the columns are, and what it means."""
    card, labels, numbers = model.card, list(model.yes_or_no), list(model.task.number_names)
    attention = ["attention score"] if model.head.attention is not None else []
    raw = "one image's raw answers, before temperature and scale, of which a case's are pooled"
    told = {"logits": {"columns": [*card.labels, *attention], "meaning": raw}}
    if labels:
        function = "softmax" if model.one_of_several else "sigmoid"
        meaning = f"{function} of the logits divided by the temperature"
        told["probabilities"] = {"columns": labels, "meaning": meaning}
    if numbers:
        told["predicted"] = {"columns": numbers, "meaning": "numbers in the units of the training dataset"}
    return told


def _onnx(network: "nn.Module", size_px: int, outputs: list[str]) -> tuple[bytes, Run]:
    import onnxruntime
    import torch

    example = torch.zeros(2, 3, size_px, size_px)
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _forget_origins(model)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: session.run(None, {"images": images})  # type: ignore[return-value]


def _forget_origins(part: Any) -> None:
    """Delete what an ONNX model and its parts say of the code that they come from, with paths of this machine."""
    for field, value in part.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            part.ClearField(field.name)
        elif field.message_type:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _forget_origins(inner)


def _torch(network: "nn.Module", size_px: int, outputs: list[str]) -> tuple[bytes, Run]:
    import torch

    example = torch.zeros(2, 3, size_px, size_px)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of code with their paths on this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    module = program.module()

    def answer(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [value.numpy() for value in module(torch.from_numpy(images))]

    return buffer.getvalue(), answer


def _apart(answer: Run, images: NDArray[np.float32], expected: list[NDArray[np.float32]]) -> float:
    """The largest difference of any output, of one image and of several, where its largest value is 1 or more."""
    differences = [
        np.abs(found - values[:size]).max() / max(1.0, np.abs(values).max())
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
    from finetune.terms import terms

    card = model.card
    short_side = card.processing.get("short_side_px")
    shrunk = [
        f"where the short side is more than {short_side} px, shrink to that, averaging over areas",
        "also where nothing was shrunk: to JPEG by Python's simplejpeg.encode_jpeg(pixels, quality="
        f"{card.processing.get('jpeg_quality')}, colorspace='RGB', colorsubsampling='444'), and back; JPEGs of other "
        "encoders differ by up to a few grey levels, and probabilities with them (by some 0.01)",
    ]
    return {
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", 3, card.size_px, card.size_px]},
        "before": [
            "8-bit sRGB, upright by its EXIF orientation; grey as three equal channels; transparency on white",
            *(shrunk if short_side else []),
            f"cut the largest centred square and resize it to {card.size_px} px, averaging over areas where that "
            "shrinks it, bilinear else",
            "red, green, blue, as numbers in 0..1 (divided by 255)",
        ],
        "inside": {
            "mean": list(card.mean),
            "std": list(card.std),
            **({"temperature": card.decision.temperature} if model.yes_or_no else {}),
            **({"numbers": scales} if (scales := _scales(model)) else {}),
        },
        "outputs": _outputs(model),
        "labels": list(card.labels),
        "classes": list(card.classes),
        "thresholds": card.decision.thresholds,
        "pooling": card.pooling,
        "task": card.task,
        "model": card.fingerprint,
        "made_from": card.made_from,
        "terms": terms(card.made_from),
    }
