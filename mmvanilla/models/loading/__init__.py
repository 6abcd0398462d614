"""Loading: weights in any form, under any names, go into a network in any form."""
