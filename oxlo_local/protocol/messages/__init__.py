"""Anthropic's /v1/messages on the wire: its requests as the calls of a chat, and a call's events as its answers."""
