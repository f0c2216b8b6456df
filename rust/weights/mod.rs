//! How a matrix is stored.
