"""The torch-free leaf that every other package may import."""
