"""What the kernels of all families stand on. A family imports from here, and from no other family."""
