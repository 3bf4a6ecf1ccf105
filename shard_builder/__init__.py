"""Turns captioned images into tar shards, once: readers list, engines resize, the manifest is written last."""
