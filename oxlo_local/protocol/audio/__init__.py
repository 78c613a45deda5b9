"""/v1/audio on the wire: forms to calls, segments to JSON, text, SRT, WebVTT or a stream of events."""
