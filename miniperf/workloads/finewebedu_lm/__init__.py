"""Language models: the decoder at any size, and the small one on the addresses to Congress."""
