"""What a message is: pure functions, no IO."""
