//! Running a program: arguments as a list, secrets scrubbed from its environment, killed when dropped.
