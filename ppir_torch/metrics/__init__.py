"""How good a registration is: millimetres, overlap of labels, folding, similarity of images."""
