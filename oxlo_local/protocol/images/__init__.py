"""/v1/images on the wire: bodies and forms to calls, images to JSON or a stream of events."""
