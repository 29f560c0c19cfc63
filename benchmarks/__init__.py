"""Side-by-side measurements of our own: which method teaches a student most, at which cost."""
