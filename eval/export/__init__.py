"""Forms in which an encoder leaves, by name. To add one: a file here, a line in the table, a row in docs/export.md."""

FORMS = {  # name -> module with a function `write` (`eval.export.form.Form`), loaded when it is used
    "torchvision": "eval.export.torchvision",
    "timm": "eval.export.timm",
    "safetensors": "eval.export.safetensors",
    "onnx": "eval.export.onnx",
    "mteb": "eval.export.mteb",
}
