"""Speech to text: recordings are read in windows, cut at silence, and their chunks computed in shared batches."""
