"""One file for each way of feeding images that `benchmarks/loader.py` times, ours and other people's."""
