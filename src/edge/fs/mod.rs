//! Files and their metadata: reading without following links, writing beneath a directory.
