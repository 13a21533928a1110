"""The textbook definition of each operator and its gradients: obvious, slow, fit for complex steps."""
