"""One run over the classes of a data set: what is read, trained, saved and evaluated."""
