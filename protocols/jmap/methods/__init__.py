"""JMAP methods: one file each."""
