"""Joint products: every loss is a product of rows that party_1 knows with an operand that party_2 fixed in advance."""
