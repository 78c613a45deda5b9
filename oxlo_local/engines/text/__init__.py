"""The text engine: continuous batching over llama.cpp's low-level API."""
