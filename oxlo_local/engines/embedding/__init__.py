"""The embedding engine: many texts become vectors, or scores against a query, in shared steps."""
