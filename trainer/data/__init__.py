"""Shards to batches: order of samples, reading and decoding, the way to the device, the proof of coverage."""
