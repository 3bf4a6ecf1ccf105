"""The losses by name. A new loss is a file beside this one and a line here."""

from trainer.losses.infonce import InfoNCE

LOSSES = {
    "infonce": InfoNCE,
}
