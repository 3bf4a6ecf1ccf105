"""One training step: forward, loss over all ranks, backward; proven before the first one."""
