"""What every metric is called, in `metrics.csv`, in wandb and in charts: who adds one names it here, and nowhere else.

A name opens with its section. Free of torch, since recipes name metrics (`best_by`).
"""

from __future__ import annotations

TRAIN, PERF, VAL, CHECK = SECTIONS = ("train", "perf", "val", "check")


def train(figure: str) -> str:
    """A figure of the training batches, as an objective shows it: `train/logit_scale`."""
    return f"{TRAIN}/{figure}"


def perf(figure: str) -> str:
    """A figure of speed and memory."""
    return f"{PERF}/{figure}"


def val(figure: str) -> str:
    """A figure of the validation set: `val/image_to_text/recall@10`."""
    return f"{VAL}/{figure}"


def check(figure: str) -> str:
    """What was looked at before step 1."""
    return f"{CHECK}/{figure}"


LOSS, GRAD_NORM, GRAD_NORM_MAX = train("loss"), train("grad_norm"), train("grad_norm_max")
NONFINITE_STEPS, LOSS_SPIKES = train("nonfinite_steps"), train("loss_spikes")
LOGIT_SCALE = train("logit_scale")  # of objectives that have one
ALIGNMENT = train("alignment")
COUNTED_FALSE_NEGATIVES = train("rows_with_counted_false_negative")

IMAGES_PER_S, IMAGES_PER_S_PER_DEVICE = perf("images_per_s"), perf("images_per_s_per_device")
STEP_S, WAIT_SHARE, VERDICT = perf("step_s"), perf("wait_share"), perf("verdict")
CHECKPOINT_WAIT_S = perf("checkpoint_wait_s")  # that the loop stood still to save, in the window
# Of several processes: the slowest and the fastest by its own clock, and which of them waits most.
SLOWEST_IMAGES_PER_S, FASTEST_IMAGES_PER_S = perf("slowest_images_per_s"), perf("fastest_images_per_s")
LEAST_WAIT_SHARE, MOST_WAIT_SHARE = perf("least_wait_share"), perf("most_wait_share")
MOST_WAITING_RANK = perf("most_waiting_rank")
PEAK_MEMORY_GIB, TFLOPS_PER_DEVICE, MFU = perf("peak_memory_gib"), perf("tflops_per_device"), perf("mfu")

IMAGE_TO_TEXT, TEXT_TO_IMAGE = DIRECTIONS = ("image_to_text", "text_to_image")
RECALL_KS = (1, 5, 10)
AP_DEPTH = 10  # of mean average precision
MEAN_RECALL = "mean_recall"  # over K, and where no direction is named over both
MEDIAN_RANK, MEAN_RANK, MEAN_AP = "median_rank", "mean_rank", f"map@{AP_DEPTH}"
KNN, KNN1 = "knn/accuracy", "knn1/accuracy"  # of k = 20, or what the gallery has; of the nearest alone
ZERO_SHOT, ZERO_SHOT_TOP5, ZERO_SHOT_BY_CLASS = "zero_shot/accuracy", "zero_shot/top5", "zero_shot/mean_per_class"
LINEAR_PROBE, LINEAR_PROBE_BY_CLASS = "linear_probe/accuracy", "linear_probe/mean_per_class"
PRECISION_KS = (1, 5, 10)
SAME_CLASS_MAP = f"same_class/map@{AP_DEPTH}"
# Of corrupted pictures: the mean over corruptions and severities, and that as a share of the figure of clean ones.
CORRUPTED_RECALL, RETAINED_RECALL = "robustness/recall", "robustness/retained"
CORRUPTED_KNN, RETAINED_KNN = "class_robustness/accuracy", "class_robustness/retained"
ECE, BRIER, BRIER_SKILL = "ece", "brier", "brier_skill"  # of a direction, below `calibration`
GAP_DISTANCE, GAP_VARIANCE = "modality_gap/distance", "modality_gap/variance_share"
GAP_PAIRS, GAP_OTHERS = "modality_gap/cosine_of_pairs", "modality_gap/cosine_of_others"
GAP_ALIGNMENT = "modality_gap/alignment"
GAP_IMAGE_UNIFORMITY, GAP_TEXT_UNIFORMITY = "modality_gap/uniformity_image", "modality_gap/uniformity_text"
VAL_LOSS = val("loss")
VAL_RETRIEVAL, VAL_NEIGHBOURS = val("retrieval"), val("neighbours")  # pictures
_SHARES = (
    "recall@", "map@", "precision@", "r_precision", "accuracy", "mean_per_class", "top5", "explained", "variance_share",
)  # fmt: skip
_OF_SHARES = ("robustness", "class_robustness", "prompt_templates")  # sections all of whose figures are shares
_LOWER_IS_BETTER = (
    "loss",
    MEDIAN_RANK,
    MEAN_RANK,
    ECE,
    BRIER,
    "distance",
    "alignment",
    "uniformity_image",
    "uniformity_text",
)

CONTACT_SHEET = check("contact_sheet")  # pictures


def lr(group: str) -> str:
    """Learning rate of a parameter group."""
    return train(f"lr_{group}")


def uniformity(feature: str) -> str:
    """Of the features of this name: `train/uniformity_image`."""
    return train(f"uniformity_{feature}")


def wait_share_of(cause: str) -> str:
    """Share of a step that is spent waiting for read, decode, collate, draw (of augmentation) or copy."""
    return perf(f"wait_{cause}_share")


def grad_ratio(group: str) -> str:
    """What the gradient proof found for a parameter group."""
    return check(f"grad_ratio_{group}")


def recall(k: int) -> str:
    """The figure's name within a direction."""
    return f"recall@{k}"


def same_class_precision(k: int) -> str:
    """Share of a picture's k nearest that are of its class."""
    return f"same_class/precision@{k}"


def of_direction(direction: str, figure: str) -> str:
    """A figure of retrieval in one direction, without its section: `image_to_text/recall@10`."""
    return f"{direction}/{figure}"


def of_corruption(mean: str, corruption: str) -> str:
    """Of one corruption what `mean` is over all of them: `robustness/recall/jpeg_compression`."""
    return f"{mean}/{corruption}"


def against(figure: str) -> str:
    """The figure less that of other weights, on the same pictures."""
    return f"against/{figure}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share from 0 to 1, which people read in percent."""
    *sections, name = metric.split("/")
    return name.startswith(_SHARES) or any(section in _OF_SHARES for section in sections)


def calibration(direction: str, figure: str) -> str:
    """A figure of the probabilities of one direction: `calibration/image_to_text/ece`."""
    return f"calibration/{direction}/{figure}"


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this validation metric is the better one."""
    return metric.rsplit("/", 1)[-1] in _LOWER_IS_BETTER


def section(metric: str) -> str:
    """What the metric's name opens with."""
    return metric.split("/", 1)[0]


def within_section(metric: str) -> str:
    """The name without its section."""
    return metric.split("/", 1)[1]
