//! Byte-pair encoding.
