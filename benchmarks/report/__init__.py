"""What was measured, as tables and figures, and where they are shown."""
