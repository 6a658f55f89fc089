"""The two parties and the dealer: what each does with its own image, its Link, and nothing else."""
