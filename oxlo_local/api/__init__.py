"""HTTP: the routes, who may ask, and how events become responses."""
