"""A package beside ppir_torch that adds one thing of each noun to it; see docs/extending.md."""
