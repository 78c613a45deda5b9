"""Processes: every loaded model is a child, and the parent decides, starts, watches and stops them."""
