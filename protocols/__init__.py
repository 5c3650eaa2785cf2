"""Wire and conversation; one folder per protocol, none knows another."""
