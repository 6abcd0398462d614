"""What the programs in tools/ share. No other part of the package uses it."""
