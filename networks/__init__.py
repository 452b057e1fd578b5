"""Networks of any library: where they can be cut, the layout of their outputs, and the state of their weights."""
