//! Plain scalar kernels.
