"""What int8 and int4 are made of: schemes by target (data), and what carries them out on finished graphs."""
