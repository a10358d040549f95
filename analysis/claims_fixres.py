"""The claims of FixRes and FixEfficientNet, beside those of MID in analysis/claims.py.

They need networks at several test sizes, fine-tuned ones with the folders of their fine-tuning, and experiments:
``multicrop-bench finetune``, ``train-low-test-high`` and ``activations``. A claim that was not measured says what it
needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from analysis import adapted_tests as tests
from analysis import published_fixres as published
from analysis.adapted import (
    AtSize,
    Pair,
    adapted_against_plain,
    alike_but,
    larger_than_train,
    lower_train_size,
    tuned_against_native,
    tuned_against_parametric,
    tuned_against_untuned,
)
from analysis.adapted_tests import NEUTRAL_MARGIN, more_right
from analysis.claim import Claim, counted, not_printed

FIXRES, FIXEFF = "FixRes", "FixEfficientNet"

TWO_SIZES = "one network at its train size and above; use --img-size 96,128"
TUNED = "a network as it is and fine-tuned at one size, and the folder of its fine-tuning"
TRAINED_LOW = "a folder of multicrop-bench train-low-test-high"
LAYERS = "one network tuned with --tune classifier and with classifier+bn at one size, and both folders"
AUGMENTATIONS = "one network tuned with two augmentations at one size, and both folders"


def _batch_norm_added(found: Sequence[AtSize]) -> list[Pair]:
    return alike_but(found, "adaptation", "classifier+bn", "classifier")


def _test_da_tuned(found: Sequence[AtSize]) -> list[Pair]:
    return [pair for pair in _batch_norm_added(found) if pair.one.augmentation == "test"]


def _efficientnet(one: AtSize) -> bool:
    return one.family == "efficientnet"


CLAIMS_FIXRES: dict[str, Claim] = {
    "larger_test_size": Claim(
        "a test size above the train size beats the train size (the size nearest to 288 for 224)",
        "Section 3.3",
        "better accuracy is obtained with higher resolution crops at test time than at train time",
        more_right(larger_than_train, TWO_SIZES),
        partial(counted, "higher_test_resolution"),
        FIXRES,
    ),
    "best_size_above_train": Claim(
        "the best test size beats the train size (chosen on other images)",
        "Sections 3.3 and 5",
        "for Ktest = 288 the accuracy is 78.4%, which is greater than 77.0% obtained for the native crop size",
        tests.best_size_above_train,
        published.best_sizes,
        FIXRES,
    ),
    "best_size_moves_up": Claim(
        "fine-tuning moves the best test size up",
        "Section 5.1",
        "Compared to when there is no fine-tuning, the Ktest at which the maximal accuracy is obtained increases from "
        "Ktest = 288 to 384",
        tests.best_size_moves_up,
        published.best_size_moves,
        FIXRES,
    ),
    "tuning_helps": Claim(
        "above the train size, fine-tuning beats the network as it is at the same size",
        "Sections 4.2 and 5.1",
        "With fine-tuning we get the best results (79%) with the classic ResNet-50 trained at Ktrain = 224",
        more_right(tuned_against_untuned, TUNED),
        published.tuned_helps,
        FIXRES,
    ),
    "tuned_beats_native": Claim(
        "fine-tuned at a larger test size beats the network as it is at its train size",
        "Section 1",
        "this problem can be solved by jointly optimizing the choice of resolutions and scales at training and test "
        "time",
        more_right(tuned_against_native, f"{TUNED} above its train size, and the network at its train size"),
        published.tuned_beats_native,
        FIXRES,
    ),
    "lower_train_size": Claim(
        "for a given test size, training at a lower size beats training at that size (as they are)",
        "Abstract",
        "for a target test resolution, using a lower train resolution offers better classification at test time",
        more_right(partial(lower_train_size, adapted=False), TRAINED_LOW),
        partial(counted, "lower_train_resolution"),
        FIXRES,
    ),
    "lower_train_size_tuned": Claim(
        "trained at a lower size and fine-tuned beats the network trained at the test size",
        "Section 5.1",
        "This is to obtain an accuracy of 77.1%, which outperforms the network trained at the native resolution of 224",
        more_right(partial(lower_train_size, adapted=True), TRAINED_LOW),
        published.lower_train_tuned,
        FIXRES,
    ),
    "because_of_random_resized_crop": Claim(
        "the larger test size gains more after RandomResizedCrop than after crops of a fixed size",
        "Appendix D",
        "the effect observed in the section 5 is mainly due to the Random Resized Crop",
        tests.because_of_random_resized_crop,
        published.random_resized_crop,
        FIXRES,
    ),
    "batch_norm_over_classifier": Claim(
        "fine-tuning the BatchNorm too beats the classifier alone",
        "Section 5.1, Table 6",
        "The batch-norm fine-tuning and improvement in data augmentation advances it to 79.0%",
        more_right(_batch_norm_added, LAYERS),
        published.batch_norm_over_classifier,
        FIXRES,
    ),
    "batch_norm_matters_more": Claim(
        "the BatchNorm matters more the further the test size is from the train size",
        "Section 5.1",
        "The higher the difference in resolution between training and testing, the more important is batch-norm "
        "fine-tuning to adapt to the data augmentation",
        tests.batch_norm_matters_more(_test_da_tuned),
        published.batch_norm_by_distance,
        FIXRES,
    ),
    "test_da_over_train_da": Claim(
        "fine-tuning on test-time augmentation beats train-time augmentation",
        "Section 4.2, Table 6",
        "We also use the test-time augmentation scheme during fine-tuning to avoid incurring further domain shifts",
        more_right(partial(alike_but, field="augmentation", one="test", other="train"), AUGMENTATIONS),
        published.test_da_over_train_da,
        FIXRES,
    ),
    "test_da2_over_test_da": Claim(
        "test DA2 (shift, flip, colour jitter) beats test DA",
        "Section 5, Table 8",
        "except in Table 2 where we use test DA2 to have slightly better performances",
        more_right(partial(alike_but, field="augmentation", one="test2", other="test"), AUGMENTATIONS),
        published.test_da2_over_test_da,
        FIXRES,
    ),
    "frechet_helps": Claim(
        "the Fréchet mapping behind the pooling improves the network as it is",
        "Section 4.2",
        "This compensation provides a measurable but limited improvement on accuracy",
        more_right(
            partial(adapted_against_plain, names=("frechet",)),
            "one network at one size with and without --adapt frechet",
        ),
        published.frechet_helps,
        FIXRES,
    ),
    "gaussian_helps_below": Claim(
        "below the train size, matching the distribution before the last ReLU improves the network as it is",
        "Appendix A.2",
        "adapting the resolution by changing the distributions is effective especially in the case of small "
        "resolutions",
        more_right(
            partial(adapted_against_plain, names=("gaussian",), below=True),
            "one network below its train size with and without --adapt gaussian",
        ),
        published.gaussian_helps_below,
        FIXRES,
    ),
    "tuning_over_parametric": Claim(
        "fine-tuning the BatchNorm beats both parametric adaptations",
        "Appendix A.2, Table 4",
        "Nevertheless, the adaptation obtained by fine-tuning the the batch norm improves performs better in general",
        more_right(
            tuned_against_parametric, "one network at one size with --adapt and fine-tuned with --tune classifier+bn"
        ),
        published.batch_norm_over_gaussian,
        FIXRES,
    ),
    "several_sizes_averaged": Claim(
        "centre crops of two sizes averaged beat the larger one alone",
        "Section 5.1",
        "To improve the accuracy, we classify the image at several resolutions and average the classification scores",
        tests.several_sizes_averaged,
        published.two_sizes,
        FIXRES,
    ),
    "ten_crops_on_tuned": Claim(
        "ten fixed crops beat the centre crop of a fine-tuned network too",
        "Section 5.1",
        "By combining this with an ensemble of 10 crops at test time, we obtain 83.9% accuracy",
        tests.ten_crops_on_tuned,
        published.ten_crops,
        FIXRES,
    ),
    "sparser_when_smaller": Claim(
        "the smaller the test size, the more zeros behind the pooling",
        "Section 3.2",
        "pooling only 0 values becomes more likely and activations are more sparse",
        tests.sparser_when_smaller,
        published.zeros,
        FIXRES,
    ),
    "backward_cheaper_in_tuning": Claim(
        "in fine-tuning the backward pass takes less time than the forward pass",
        "Section 5.1, Table 7",
        "during fine-tuning the ratio is inverted because the backward pass is applied only to the last layers",
        tests.backward_cheaper_in_tuning,
        published.times_in_tuning,
        FIXRES,
    ),
    "fixefficientnet_over_efficientnet": Claim(
        "a fine-tuned EfficientNet beats the EfficientNet at its own size",
        "Section 3.2",
        "All our FixEfficientNets outperform the corresponding EfficientNet",
        more_right(
            partial(tuned_against_native, keep=_efficientnet), f"{TUNED}: an EfficientNet, above its train size"
        ),
        partial(counted, "fixed_beats_original"),
        FIXEFF,
    ),
    "label_smoothing_helps": Claim(
        "label smoothing in fine-tuning helps",
        "Section 2",
        "we have integrated label smoothing, which is orthogonal to the approach",
        more_right(
            partial(alike_but, field="label_smoothing", one=0.1, other=0.0),
            "one network tuned with and without --label-smoothing 0.1 at one size, and both folders",
        ),
        partial(not_printed, "no network was tuned without it"),
        FIXEFF,
    ),
    "remains_on_clean_labels": Claim(
        "the gain of fine-tuning remains with cleaner labels (ImageNet-ReaL)",
        "Abstract",
        "we show that our improvement remains in the experimental setting of ImageNet-v2, that is less prone to "
        "overfitting, and with ImageNet Real Labels",
        tests.remains_on_clean_labels,
        published.on_clean_labels,
        FIXEFF,
    ),
    "remains_on_v2": Claim(
        "the gain of fine-tuning remains on ImageNet-V2",
        "Abstract",
        "we show that our improvement remains in the experimental setting of ImageNet-v2, that is less prone to "
        "overfitting, and with ImageNet Real Labels",
        tests.remains_on_v2,
        published.on_v2,
        FIXEFF,
    ),
    "neutral_to_overfitting": Claim(
        f"fine-tuning is neutral to overfitting: its gains on ImageNet-V2 and ImageNet differ by less than "
        f"{NEUTRAL_MARGIN:g} point",
        "Section 3.4",
        "The FixRes fine-tuning procedure is neutral with respect to overfitting: overfitted models remain overfitted "
        "and conversely",
        tests.neutral_to_overfitting,
        published.gains_on_both,
        FIXEFF,
    ),
    "noisy_student_overfits": Claim(
        "of networks equal on ImageNet, those not of Noisy Student are better on ImageNet-V2",
        "Section 3.4",
        "for a comparable performance on ImageNet, when evaluating on ImageNet-V2, the Billion scale models of Yalniz "
        "et al. [2] outperform the EfficientNets from Noisy Student",
        tests.noisy_student_overfits,
        partial(counted, "better_on_v2_at_equal_accuracy"),
        FIXEFF,
    ),
}
