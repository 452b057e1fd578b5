"""A trained model on the line: judging by HTTP and from folders, and what was judged, kept in a store."""
