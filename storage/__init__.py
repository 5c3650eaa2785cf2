"""Storage roles, several engines each."""
