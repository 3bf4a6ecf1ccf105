"""Families of towers by name: `model.tower: family:name`, torchvision's without the family."""

from trainer.models.towers.timm import timm_tower
from trainer.models.towers.torchvision import torchvision_tower
from trainer.models.towers.tower import Family

TOWERS: dict[str, Family] = {
    "torchvision": torchvision_tower,
    "timm": timm_tower,
}
