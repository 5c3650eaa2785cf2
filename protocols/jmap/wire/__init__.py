"""JMAP grammar: requests, references, errors, ids."""
