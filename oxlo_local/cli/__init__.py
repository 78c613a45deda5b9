"""The oxlo command."""
