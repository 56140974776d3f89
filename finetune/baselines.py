"""Baselines without a network of their own: PCA and logistic regression, ORB words and an SVM, nearest neighbours.

Each learns from the training images, chooses one number on validation, and gives logits, from which the task makes
its probabilities as it does for all others. Shapes: I images, J training images, B batch, D numbers, K labels, W words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from clusters.config import InputError
from clusters.tracking import say
from finetune.bootstrap import Floats
from finetune.cohort import Cohort, Rows, case_auroc
from finetune.config import FinetuneConfig
from finetune.contenders import ORB_KEYPOINTS, ORB_SIZE_PX, ORB_WORDS, PCA_COMPONENTS, PCA_SIZE_PX, Contender
from finetune.linear import NEVER, fit_linear
from finetune.tasks import Task

ORB_BYTES = 32
ORB_FAST_THRESHOLD = 5
"""Grey levels by which a corner must stand out: OpenCV's 20 finds next to none on skin or in a lung."""
VOCABULARY_DESCRIPTORS = 200_000
SVM_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
CALIBRATION_FOLDS = 5
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
BLOCK_IMAGES = 512
SMALLEST = 1e-6
"""A probability of 0 has no logit."""

Numbers = NDArray[np.generic]
Of = Callable[[Rows], Numbers]
Logits = Callable[[Numbers], Floats]


@dataclass(frozen=True)
class Fitted:
    """Numbers of images (I, D) to logits (I, K), and how it was chosen on validation."""

    logits: Logits
    chosen: dict[str, Any]
    tried: list[dict[str, Any]]


def flat_pixels(pixels_B3HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All pixels of small images, uint8 (B, D)."""
    return pixels_B3HW.reshape(len(pixels_B3HW), -1)


def orb_descriptors(pixels_B3HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How many keypoints an image has, at most ORB_KEYPOINTS, and the 32 bytes of each: uint8 (B, 1 + 32 · most)."""
    import cv2

    orb = cv2.ORB_create(nfeatures=ORB_KEYPOINTS, fastThreshold=ORB_FAST_THRESHOLD)  # type: ignore[attr-defined]
    out = np.zeros((len(pixels_B3HW), 1 + ORB_BYTES * ORB_KEYPOINTS), dtype=np.uint8)
    for row, pixels in zip(out, pixels_B3HW):
        grey = cv2.cvtColor(np.ascontiguousarray(pixels.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
        found = orb.detectAndCompute(grey, None)[1]
        if found is not None:
            some = found[:ORB_KEYPOINTS]
            row[0], row[1 : 1 + some.size] = len(some), some.ravel()
    return out


IMAGE_NUMBERS = {"pca": (PCA_SIZE_PX, flat_pixels), "orb": (ORB_SIZE_PX, orb_descriptors)}
"""By the kind of a contender that goes by pixels: the side of its images, px, and what is kept of them."""


def check_baselines(entrants: list[Contender], task: Task, location: str) -> None:
    """Raise InputError for a baseline that cannot answer the task."""
    numbers = getattr(task, "number_names", ())
    unable = [entrant.name for entrant in entrants if entrant.kind in ("orb", "knn")]
    if numbers and unable:
        raise InputError(
            f"baselines: {', '.join(unable)} tell classes apart, and {', '.join(numbers)} of {location} are numbers; "
            "take them out"
        )


@threadpool_limits.wrap(limits=1)
def fit_baseline(kind: str, cohort: Cohort, of: Of, config: FinetuneConfig) -> Fitted:
    """Fit a baseline; `of` gives the numbers of some rows of the dataset. Depends on the seed alone."""
    fits = {"pca": _fit_pca, "orb": _fit_orb, "knn": _fit_knn}
    return fits[kind](cohort, of, config)


def logits_of(task: Task, probabilities_IK: Floats) -> Floats:
    """Logits of which the task makes these probabilities again, kept off 0 and 1."""
    some = np.clip(np.asarray(probabilities_IK, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(some) if task.kind == "multiclass" else np.log(some) - np.log1p(-some)


def _fit_pca(cohort: Cohort, of: Of, config: FinetuneConfig) -> Fitted:
    """Principal components of all training images, labelled or not, as the encoder saw them all."""
    from sklearn.decomposition import PCA

    pixels_ID = of(cohort.all_train).astype(np.float32)
    components = min(PCA_COMPONENTS, len(pixels_ID) - 1, pixels_ID.shape[1])
    pca = PCA(components, svd_solver="randomized", random_state=config.seed).fit(pixels_ID)

    def transform(pixels: Numbers) -> Floats:
        return pca.transform(pixels.astype(np.float32))

    train, val = transform(of(cohort.train)), transform(of(cohort.val))
    by_image = config.linear.model_copy(update={"pooling": "none"})
    choice = fit_linear(cohort, train, val, config.class_weighting, by_image, "pca")
    return Fitted(lambda pixels: choice.head.logits(transform(pixels)), choice.chosen, choice.tried)


def _fit_orb(cohort: Cohort, of: Of, config: FinetuneConfig) -> Fitted:
    """Bag of visual words and one linear SVM a label.

    The strength with the best AUROC of the margins on validation; a margin becomes a probability by Platt's sigmoid
    (1999), fitted on margins of training images that the SVM had not seen, those of one patient together.
    """
    words = _vocabulary(of(cohort.train), config.seed)
    train_IW = words(of(cohort.train))
    positive_IK, known_IK = _targets(cohort)
    weights = cohort.training_weights(config.class_weighting)
    fits = {c: [_svm(train_IW, y, k, weights, c) for y, k in zip(positive_IK.T, known_IK.T)] for c in SVM_STRENGTHS}
    val_IW, tried = words(of(cohort.val)), []
    for strength, margins in fits.items():
        # The smallest margin is no probability, but a sigmoid of it keeps the order of images.
        scores = logits_of(cohort.task, 1 / (1 + np.exp(-_columns(margins, val_IW))))
        tried.append({"C": strength, "val_auroc": case_auroc(cohort, cohort.val, scores)})
    chosen = _best(tried, "orb")
    margins = fits[chosen["C"]]
    patients = cohort.patient_of[cohort.train]
    sigmoids = [_platt(train_IW, y, k, weights, chosen["C"], patients) for y, k in zip(positive_IK.T, known_IK.T)]

    def logits(numbers: Numbers) -> Floats:
        columns_IK = _columns(margins, words(numbers))
        slope_K, offset_K = np.array(sigmoids).T
        probabilities = 1 / (1 + np.exp(-np.clip(slope_K * columns_IK + offset_K, -30, 30)))
        if cohort.task.kind == "multiclass":
            probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        return logits_of(cohort.task, probabilities)

    return Fitted(logits, chosen, tried)


def _vocabulary(numbers_ID: Numbers, seed: int) -> Callable[[Numbers], Floats]:
    """From `orb_descriptors` to the square roots of the words' shares, (I, W): words are means of training bits.

    Of shares under a linear SVM the root is the better measure (Hellinger's distance).
    """
    from sklearn.cluster import MiniBatchKMeans

    drawn = np.random.default_rng(seed).permutation(len(numbers_ID))
    found, enough = [], 0
    for image in drawn:
        found.append(_bits(numbers_ID[image : image + 1])[0])
        enough += len(found[-1])
        if enough >= VOCABULARY_DESCRIPTORS:
            break
    bits_ND = np.concatenate(found)
    num_words = min(ORB_WORDS, len(np.unique(bits_ND, axis=0)))
    if num_words < 2:
        return lambda numbers: np.zeros((len(numbers), 1))
    kmeans = MiniBatchKMeans(num_words, random_state=seed, batch_size=4096, max_iter=20).fit(bits_ND)

    def words(numbers: Numbers) -> Floats:
        counts_IW = np.zeros((len(numbers), num_words))
        for start in range(0, len(numbers), BLOCK_IMAGES):
            bits, image = _bits(numbers[start : start + BLOCK_IMAGES])
            if len(bits):
                np.add.at(counts_IW, (start + image, kmeans.predict(bits)), 1)
        return np.sqrt(counts_IW / np.maximum(1, counts_IW.sum(axis=1, keepdims=True)))

    return words


def _bits(numbers_ID: Numbers) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The bits of all descriptors, float (N, 256), whose Euclidean distance is Hamming's, and whose they are, (N,)."""
    counts_I = numbers_ID[:, 0].astype(np.int64)
    descriptors = numbers_ID[:, 1:].astype(np.uint8, copy=False).reshape(len(numbers_ID), ORB_KEYPOINTS, ORB_BYTES)
    there = np.arange(ORB_KEYPOINTS) < counts_I[:, None]
    return np.unpackbits(descriptors[there], axis=1).astype(np.float32), np.repeat(np.arange(len(counts_I)), counts_I)


def _targets(cohort: Cohort) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each label of each training image is positive, and whether it is known, (J, K)."""
    truth = cohort.truth[cohort.train]
    if cohort.task.kind == "multiclass":
        return np.eye(truth.shape[1], dtype=bool)[cohort.class_of(cohort.train)], np.ones(truth.shape, dtype=bool)
    return truth >= 0.5, np.isfinite(truth)


def _svm(train_IW: Floats, positive_I: Any, known_I: Any, weights_I: Floats, strength: float) -> Logits:
    """The margin of one label; far below where training has no case of it, far above where it has no other."""
    from sklearn.svm import LinearSVC

    positive = positive_I[known_I]
    if len(np.unique(positive)) < 2:
        level = -NEVER if positive.any() else NEVER
        return lambda words: np.full(len(words), level)
    scaled = weights_I[known_I] / weights_I[known_I].mean()
    svm = LinearSVC(C=strength, dual=False, max_iter=5000).fit(  # type: ignore[arg-type]
        train_IW[known_I], positive, sample_weight=scaled
    )
    return svm.decision_function


def _columns(margins: list[Logits], words_IW: Numbers) -> Floats:
    return np.stack([np.clip(margin(words_IW), -30, 30) for margin in margins], axis=1)


def _platt(
    train_IW: Floats, positive_I: Any, known_I: Any, weights_I: Floats, strength: float, patient_I: Any
) -> tuple[float, float]:
    """Slope and offset of the sigmoid of one label's margins; (1, 0) where nothing can be left out to fit it on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    some = np.flatnonzero(known_I)
    patients = min(len(np.unique(patient_I[some][positive_I[some] == side])) for side in (False, True))
    folds = min(CALIBRATION_FOLDS, patients)
    if folds < 2:
        return 1.0, 0.0
    margins = np.zeros(len(some))
    for kept, left_out in StratifiedGroupKFold(folds).split(some, positive_I[some], patient_I[some]):
        known = np.zeros_like(known_I)
        known[some[kept]] = True
        margin = _svm(train_IW, positive_I, known, weights_I, strength)
        margins[left_out] = _columns([margin], train_IW[some[left_out]])[:, 0]
    fit = LogisticRegression(C=1e6).fit(margins[:, None], positive_I[some], sample_weight=weights_I[some])
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def _fit_knn(cohort: Cohort, of: Of, config: FinetuneConfig) -> Fitted:
    """Shares of the labels among the nearest training images by cosine, a case weighing the same in all."""
    train_JD = _unit(of(cohort.train))
    weights = cohort.training_weights(config.class_weighting)
    truth = cohort.truth[cohort.train]
    known_JK = np.isfinite(truth) * weights[:, None]
    positive_JK = np.nan_to_num(truth) * weights[:, None]
    sizes = [k for k in NEIGHBOURS if k <= len(train_JD)] or [len(train_JD)]

    def shares(numbers: Numbers, k: int) -> Floats:
        prior_K = positive_JK.sum(0) / np.maximum(known_JK.sum(0), 1e-12)
        found = [np.empty((0, truth.shape[1]))]
        for start in range(0, len(numbers), BLOCK_IMAGES):
            near_IJ = _unit(numbers[start : start + BLOCK_IMAGES]) @ train_JD.T
            nearest = np.argpartition(-near_IJ, k - 1, axis=1)[:, :k]
            known = known_JK[nearest].sum(1)
            found.append(np.where(known > 0, positive_JK[nearest].sum(1) / np.maximum(known, 1e-12), prior_K))
        return logits_of(cohort.task, np.concatenate(found))

    val = of(cohort.val)
    tried = [{"neighbours": k, "val_auroc": case_auroc(cohort, cohort.val, shares(val, k))} for k in sizes]
    chosen = _best(tried, "knn")
    return Fitted(lambda numbers: shares(numbers, chosen["neighbours"]), chosen, tried)


def _unit(numbers_ID: Numbers) -> NDArray[np.float32]:
    values = numbers_ID.astype(np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _best(tried: list[dict[str, Any]], title: str) -> dict[str, Any]:
    """The first of the best by validation AUROC."""
    chosen = tried[int(np.argmax([round(row["val_auroc"], 9) for row in tried]))]
    what = next(iter(chosen))
    say(f"{title}: {what} {chosen[what]:g} of {len(tried)}, validation AUROC {chosen['val_auroc']:.4f}")
    return chosen
