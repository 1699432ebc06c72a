"""A cache of keys and values that holds latents of lower rank."""
