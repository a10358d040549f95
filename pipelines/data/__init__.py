"""Finding images and their labels, and where each image's bytes lie."""
