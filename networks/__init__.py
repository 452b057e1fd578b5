"""How a network of any library is cut after the last layer used, and what its outputs are."""
