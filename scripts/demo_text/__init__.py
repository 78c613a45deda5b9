"""How oxlo-demo is made: the text it learns from, the model, its export and its score."""
