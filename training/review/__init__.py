"""People accept, correct or reject the masks and chains of a quadruplet store: `wsiseg data review`."""
