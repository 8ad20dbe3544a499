//! The real clock, randomness, host name, and what the kernel says about this machine.
