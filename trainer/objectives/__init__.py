"""The objectives by name. To add one: a file beside this one, and a line here."""

from collections.abc import Callable

from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Objective
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "infonce": InfoNCE,
    "nt_xent": NTXent,
    "siglip": SigLIP,
    "supcon": SupCon,
}
