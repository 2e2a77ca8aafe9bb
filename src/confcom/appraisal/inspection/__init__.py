"""Decodes anything of this world and explains it, without verifying any of it: `recognise.inspect` is the way in."""
