//! Files to named tensors, memory-mapped.
