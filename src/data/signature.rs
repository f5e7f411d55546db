//! Tells a file of another kind by its first bytes, before HDF5 is asked.

use std::fs::Metadata;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};

const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// How other kinds of file begin, what they are, and what to do.
const OTHERS: [(&[u8], &str); 9] = [
    (b"\x1f\x8b", "a gzip file; unpack it with `gunzip` first"),
    (b"PK\x03\x04", "a zip file (a .npz is one too); unpack it or write its arrays to HDF5 with h5py"),
    (b"\x93NUMPY", "a NumPy array; write it to HDF5 with h5py"),
    (b"version https://git-lfs", "a Git LFS pointer; get the data with `git lfs pull`"),
    (b"<", "a web page or XML; the download went wrong, get the file again"),
    (b">", "FASTA text; embeddings are needed, not sequences"),
    (b"CDF", "a classic NetCDF file; convert it with `nccopy -k nc4`"),
    (b"SIMPLE", "a FITS file; write its arrays to HDF5 with h5py"),
    (b"{", "JSON text; write its arrays to HDF5 with h5py"),
];

/// An error unless `file` carries an HDF5 signature where the format allows one.
pub(super) fn check(path: &Path, file: &std::fs::File, meta: &Metadata) -> Result<()> {
    let wrong = |what: String| Err(Error::data(path, "", what));
    if meta.is_dir() {
        return wrong("is a folder; name the .h5 files in it".into());
    }
    if !meta.is_file() {
        return wrong("is not a regular file; copy the data to one first".into());
    }
    if meta.len() == 0 {
        return wrong("is empty (0 bytes); download or copy it again".into());
    }
    let mut start = [0u8; 32];
    // A user block of 512, 1024, 2048, ... bytes may precede the signature.
    let mut at = 0u64;
    while at < meta.len() {
        let mut found = [0u8; 8];
        if file.read_exact_at(&mut found, at).is_ok() && found == SIGNATURE {
            return Ok(());
        }
        at = if at == 0 { 512 } else { at.saturating_mul(2) };
    }
    let n = file.read_at(&mut start, 0).map_err(Error::io(path, "read"))?;
    let head = start[..n].trim_ascii_start();
    if head.len() < 8 && SIGNATURE.starts_with(&start[..n.min(8)]) {
        return wrong(format!("the file is cut short at {n} bytes; download or copy it again"));
    }
    if start[..n].iter().all(|&byte| byte == 0) {
        return wrong("holds zeros only; the copy went wrong, download or copy it again".into());
    }
    for (magic, kind) in OTHERS {
        if head.starts_with(magic) {
            return wrong(format!("is not HDF5 but looks like {kind}"));
        }
    }
    wrong("is not an HDF5 file; give a .h5 file of embeddings".into())
}

/// Whether a file begins as the first member of a family: the driver's name stands after the superblock.
pub(super) fn is_member_of_family(file: &std::fs::File) -> bool {
    let mut start = [0u8; 2048];
    let n = file.read_at(&mut start, 0).unwrap_or(0);
    start[..n].windows(8).any(|bytes| bytes == b"NCSAfami")
}
