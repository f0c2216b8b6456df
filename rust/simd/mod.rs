//! The vector trait, one file per instruction set, and the only dispatch.
