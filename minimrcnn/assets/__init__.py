"""What ships with the package: the mini model trained on the toybox (README.md here says how it was made)."""
