"""What makes files of the project: run from its root, needed by nobody who only uses it."""
