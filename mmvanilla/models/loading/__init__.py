"""Loading: weights of any form, under any names, into a network of any form."""
