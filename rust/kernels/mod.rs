//! Functions over slices.
