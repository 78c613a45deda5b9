"""Images from text and from images: calls of one kind share a denoising loop, which is computed a step at a time."""
