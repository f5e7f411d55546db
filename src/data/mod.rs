//! Embeddings from HDF5.
