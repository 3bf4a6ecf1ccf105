"""Mutants that were looked at and change nothing that anybody may rely on: (file, before, after) -> the reason."""

_SLOWER = "the same pictures, more slowly"
UNCHANGED: dict[tuple[str, str, str], str] = {
    (
        "trainer/pictures/augment.py",
        "moves, blurs = drawn.moves_pixels(images.shape[-2], images.shape[-1], self._size), drawn.blurs()",
        "moves, blurs = drawn.moves_pixels(images.shape[-2], images.shape[1], self._size), drawn.blurs()",
    ): f"{_SLOWER}: each pixel is its own sum of one tap",
    (
        "trainer/pictures/resample.py",
        "return math.ceil(2 * max(1, length / size))",
        "return math.ceil(3 * max(1, length / size))",
    ): f"{_SLOWER}: the taps that are added have weight 0",
    (
        "trainer/data/columns.py",
        'chance = uniform(seed, epoch, draws, "caption", 1)[:, 0].astype(np.float64)',
        'chance = uniform(seed, epoch, draws, "caption", 1)[:, -1].astype(np.float64)',
    ): "of one number, the first is the last",
    (
        "trainer/data/stream.py",
        "_NO_SLOT = -1",
        "_NO_SLOT = - 2",
    ): "stands where no buffer is, and is never used as one",
    (
        "trainer/data/ledger.py",
        "seen=len(self._order) - num_missed,",
        "seen=len(self._order) + num_missed,",
    ): "an account is given only where none is missed",
    (
        "trainer/data/ledger.py",
        "repeated=int(surplus[surplus > 0].sum()),",
        "repeated=int(surplus[surplus >= 0].sum()),",
    ): "what is added is 0",
    (
        "trainer/data/workers.py",
        "self._read_s = self._decode_s = 0.0",
        "self._read_s = self._decode_s = 1.0",
    ): "in `__init__`: every part begins at 0 again",
    (
        "trainer/data/ledger.py",
        "per_rank = self._global_batch_size // self._world_size",
        "per_rank = self._global_batch_size * self._world_size",
    ): "of what a resume has behind it, only the sum over ranks counts: rank 0 has it all",
    (
        "core/manifest.py",
        'if body.get("format_version", 0) > FORMAT_VERSION:',
        'if body.get("format_version", -1) > FORMAT_VERSION:',
    ): "what has no version is older than any",
    (
        "core/column_values.py",
        "if len(heads) == 1 or heads[0].kind not in (LABELS, TOPICS):",
        "if len(heads) == 1 or heads[1].kind not in (LABELS, TOPICS):",
    ): "all heads are of one kind: `open_heads` sees to it",
    (
        "core/shard_index.py",
        "data = memoryview(data)",
        "pass",
    ): "the same index; slices of bytes are copied",
    (
        "trainer/data/stream.py",
        "_NO_SLOT = -1",
        "_NO_SLOT = 1",
    ): "stands where no buffer is, and is never used as one",
    (
        "core/column_values.py",
        "buffer = io.BytesIO(bytes(data[:4096])) # the header is far shorter",
        "buffer = io.BytesIO(bytes(data[: 4097])) # the header is far shorter",
    ): "the header is far shorter than either",
    (
        "core/shard_index.py",
        'header_end = 12 + int(np.frombuffer(data, "<u4", 1, 8)[0])',
        'header_end = 12 + int(np.frombuffer(data, "<u4", 2, 8)[0])',
    ): "four bytes more are looked at, which every index has",
    (
        "core/column_values.py",
        "if heads[0].kind == LABELS:",
        "if heads[-1].kind == LABELS:",
    ): "all heads are of one kind: `open_heads` sees to it",
    (
        "trainer/samplers/class_balanced.py",
        "if num_classes < 1 or num_per_class < 1 or wanted != epoch.global_batch_size:",
        "if num_classes < 1 or num_per_class < 0 or wanted != epoch.global_batch_size:",
    ): "0 samples of each are never a batch's size",
    (
        "trainer/data/ledger.py",
        "num_missed = int(-surplus[surplus < 0].sum())",
        "num_missed = int(-surplus[surplus <= 0].sum())",
    ): "what is added is 0",
    (
        "core/columns.py",
        "return done[0]",
        "return done[-1]",
    ): "there is one",
    (
        "trainer/checkpoint/files.py",
        'if body.get("format_version", 0) > FORMAT_VERSION:',
        'if body.get("format_version", -1) > FORMAT_VERSION:',
    ): "either is older than every format",
    (
        "trainer/checkpoint/files.py",
        "os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)",
        "os.posix_fadvise(descriptor, 1, 0, os.POSIX_FADV_DONTNEED)",
    ): "the page of the first byte is the page of the second",
    (
        "trainer/optim/build.py",
        'fused = config.fused if config.fused is not None else groups[0]["params"][0].is_cuda',
        'fused = config.fused if config.fused is not None else groups[0]["params"][-1].is_cuda',
    ): "all parameters lie on one device",
}
