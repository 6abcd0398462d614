"""What saves memory or time on some devices. None of it changes what a network computes."""
