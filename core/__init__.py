"""What several stages need; imports nothing of ours."""
