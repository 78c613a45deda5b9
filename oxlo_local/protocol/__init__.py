"""OpenAI's wire language without I/O: bytes to typed requests to calls, events to objects and chunks."""
