"""What is used of `cupyx.scipy`."""
