"""What a run counts and logs."""
