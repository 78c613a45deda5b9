"""oxlo: a self-hosted, OpenAI-compatible inference server with one flat price a request."""

__version__ = "0.1.0"
