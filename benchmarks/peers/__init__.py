"""The operators in PyTorch, one stem a family, and how they are compared with ours before they are timed."""
