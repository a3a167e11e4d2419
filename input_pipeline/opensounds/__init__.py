"""OpenSounds: sounds that ship inside free-software packages, as a TFDS dataset."""
