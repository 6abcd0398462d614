"""What saves memory or time on some device. None of it changes what a network computes."""
