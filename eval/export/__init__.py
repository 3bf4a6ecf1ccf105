"""Forms in which an encoder leaves, by name. To add one: a file here, a line in the table, a row in docs/export.md."""

from eval.export.form import Form
from eval.export.onnx import write_onnx
from eval.export.safetensors import write_safetensors
from eval.export.timm import write_timm
from eval.export.torchvision import write_torchvision

FORMS: dict[str, Form] = {
    "torchvision": write_torchvision,
    "timm": write_timm,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
}
