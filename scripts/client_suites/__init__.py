"""Stock clients of OpenAI's API, whole, against a server of this checkout: what runs them, and what judges the wire."""
