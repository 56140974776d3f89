"""Test images in the report, with what was said of them and what was true."""

import numpy as np

from clusters.config import InputError
from data.images import decode_stored, encode_jpeg
from data.loader import centre_square
from data.page import LINE_BREAK, Html, Image, image_strip, join, paragraph, tag
from finetune.cohort import Cohort
from finetune.evaluate import Judged, first_images

PICTURE_PX, PICTURE_QUALITY = 160, 80
NUM_MISTAKES, NUM_EXAMPLES = 12, 12


def sample_images(judged: Judged, cohort: Cohort) -> Html:
    """The most confident mistakes, and cases drawn evenly from all of the test split."""
    test = judged.test
    wrong = np.flatnonzero(test.true_class_N != test.decided_class_N)
    confidence = _confidence(judged)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_MISTAKES]
    some = np.unique(np.linspace(0, len(confidence) - 1, min(NUM_EXAMPLES, len(confidence))).round().astype(int))
    rows = first_images(cohort, cohort.test)

    def pictures(cases: np.ndarray) -> Html:
        return image_strip(_picture(int(case), int(rows[case]), judged, cohort) for case in cases)

    parts = [tag("h3", f"Most confident mistakes ({len(worst)} of {len(wrong)})")]
    parts.append(pictures(worst) if len(worst) else paragraph("None."))
    parts += [tag("h3", "Cases from all of the test split"), pictures(some)]
    parts.append(paragraph("The first image of each case; the decision is on the mean over the case's images."))
    return join(parts)


def _picture(case: int, row: int, judged: Judged, cohort: Cohort) -> Image:
    test = judged.test
    truth, decided = test.true_class_N[case], test.decided_class_N[case]
    order = np.argsort(-test.scores_NK[case], kind="stable")[:3]
    scores = ", ".join(f"{test.label_names[k]} {100 * test.scores_NK[case, k]:.0f} %" for k in order)
    if test.class_names:
        said = [tag("b", test.class_names[truth]), LINE_BREAK, "said ", test.class_names[decided]]
    else:
        said = [tag("b", ", ".join(np.array(test.label_names)[test.truth_NK[case] == 1]) or "none of the labels")]
    caption = join([*said, LINE_BREAK, scores])
    try:
        pixels = centre_square(decode_stored(cohort.dataset.read(row)), PICTURE_PX)
    except InputError as error:
        return Image(encode_jpeg(np.full((8, 8, 3), 128, np.uint8)), str(error), "bad")
    return Image(
        encode_jpeg(pixels, quality=PICTURE_QUALITY),
        caption,
        "good" if truth == decided else "bad",
    )


def _confidence(judged: Judged) -> np.ndarray:
    """How sure the model was of its decision, per case."""
    test = judged.test
    if judged.threshold is None:
        return test.scores_NK.max(axis=1)
    return np.abs(test.scores_NK[:, 0] - judged.threshold)
