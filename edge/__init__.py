"""The torch-free runtime: opens a build and answers questions about images."""
