"""What is trained: image towers, text towers, their heads, and the learned scalars of the objective."""
