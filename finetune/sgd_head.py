"""A linear head trained by stochastic gradient descent, as papers do that search over learning rate and decay.

The optimum that `finetune.solver` finds has no learning rate; this head stands where a paper's grid is repeated.
Shapes: I images, B a batch, D features, K labels.
"""

import math

import numpy as np

from clusters.config import InputError
from data.order import keyed_generator
from finetune.bootstrap import Floats
from finetune.config import SgdConfig
from finetune.head_problems import Loss, predicted
from finetune.row_blocks import F32

MOMENTUM = 0.9


def train_head(
    features_ID: F32, truth_IK: Floats, weight_I: Floats, loss: Loss, config: SgdConfig, seed: int
) -> tuple[F32, F32]:
    """Weights (D, K) and biases (K,) from zero, after `config.epochs` in an order that the seed decides.

    The learning rate falls to 0 as a cosine. The loss is the mean over a batch and over its labels (softmax: one for
    all labels); weights decay, biases do not. Truth that is NaN adds nothing. The features should be standardised.
    Raises InputError where the weights are not finite at the end.
    """
    num_images, num_labels = truth_IK.shape
    known_IK = np.isfinite(truth_IK)
    truth = np.where(known_IK, truth_IK, 0).astype(np.float32)
    share_IK = np.where(known_IK, weight_I[:, None] / weight_I.mean(), 0).astype(np.float32)
    share_IK /= 1 if loss == "softmax" else num_labels
    weight_DK = np.zeros((features_ID.shape[1], num_labels), dtype=np.float32)
    bias_K = np.zeros(num_labels, dtype=np.float32)
    speeds = [np.zeros_like(weight_DK), np.zeros_like(bias_K)]
    batch = min(config.batch_size, num_images)
    per_epoch = num_images // batch
    for step in range(config.epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = np.argsort(keyed_generator("linear head", seed, epoch).random_raw(num_images), kind="stable")
        rows = order[place * batch : (place + 1) * batch]
        features_BD = features_ID[rows]
        chance_BK = predicted(features_BD @ weight_DK + bias_K, loss, num_labels)
        residual_BK = share_IK[rows] * (chance_BK - truth[rows]) / np.float32(batch)
        rate = np.float32(config.lr * 0.5 * (1 + math.cos(math.pi * step / (config.epochs * per_epoch))))
        slopes = [features_BD.T @ residual_BK + np.float32(config.weight_decay) * weight_DK, residual_BK.sum(axis=0)]
        for values, speed, slope in zip((weight_DK, bias_K), speeds, slopes):
            speed *= np.float32(MOMENTUM)
            speed += slope
            values -= rate * speed
    if not np.isfinite(weight_DK).all():
        raise InputError(f"the linear head's weights are not finite; lower linear.sgd.lr, which is {config.lr:g}")
    return weight_DK, bias_K
