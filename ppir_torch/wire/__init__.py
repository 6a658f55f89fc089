"""What may cross between two parties, and the link that carries it; nothing about registration."""
