"""Point sets: their files, rigid alignment of sets in one order, and closest points where there is none."""
