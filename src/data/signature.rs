//! Tells the format of a file by its first bytes, and for those that are not read how to convert them.

use std::fs::Metadata;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Result};

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    Hdf5,
    Npy,
    #[cfg(feature = "parquet")]
    Parquet,
    Safetensors,
}

const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// How other kinds of file begin, what they are, and what to do. `{in}` and `{out}` stand for the file and a new one.
const OTHERS: [(&[u8], &str); 11] = [
    (b"\x1f\x8b", "a gzip file; unpack it with `gunzip {in}`"),
    (b"PK\x03\x04", "a zip file; unpack it with `unzip {in}`"),
    (
        b"PAR1",
        "a Parquet table; read it with a `sae` that was built with `cargo install --path . --features parquet`, or write its vectors to HDF5: `python3 -c 'import h5py, numpy, pandas; t = pandas.read_parquet(\"{in}\"); h5py.File(\"{out}\", \"w\")[\"embeddings\"] = numpy.stack(t[\"COLUMN\"])'`",
    ),
    (
        b"\x80",
        "a Python pickle; where you trust the file and it is a dict of arrays, write them to HDF5: `python3 -c 'import h5py, pickle; f = h5py.File(\"{out}\", \"w\"); [f.create_dataset(str(i), data=x) for i, x in pickle.load(open(\"{in}\", \"rb\")).items()]'`",
    ),
    (b"version https://git-lfs", "a Git LFS pointer; get the data with `git lfs pull`"),
    (b"<", "a web page or XML; the download went wrong, get the file again"),
    (b">", "FASTA text; embeddings are needed, not sequences"),
    (b"CDF", "a classic NetCDF file; convert it with `nccopy -k nc4 {in} {out}`"),
    (b"SIMPLE", "a FITS file; write its arrays to HDF5 with h5py"),
    (b"{", JSON),
    (b"[", JSON),
];
const JSON: &str = "JSON text; write a column of lists as an array: `python3 -c 'import numpy, pandas; numpy.save(\"rows.npy\", numpy.stack(pandas.read_json(\"{in}\", lines=True)[\"COLUMN\"]))'` (without lines=True where the whole file is one value)";
const NPZ: &str = "a .npz archive of NumPy arrays; write one to HDF5: `python3 -c 'import h5py, numpy; h5py.File(\"{out}\", \"w\")[\"embeddings\"] = numpy.load(\"{in}\")[\"NAME\"]'`";
const TORCH: &str = "a PyTorch file (.pt); write its tensor to HDF5: `python3 -c 'import h5py, torch; h5py.File(\"{out}\", \"w\")[\"embeddings\"] = torch.load(\"{in}\", map_location=\"cpu\").float().numpy()'`";
const TABLE: &str = "a table of text; write its columns of numbers to HDF5: `python3 -c 'import pandas; pandas.read_csv(\"{in}\", index_col=0, sep=None, engine=\"python\").to_hdf(\"{out}\", key=\"df\", format=\"fixed\")'`";
const ZARR: &str = "is a Zarr folder; write its array to HDF5: `python3 -c 'import h5py, zarr; h5py.File(\"{out}\", \"w\")[\"embeddings\"] = zarr.open(\"{in}\")[\"NAME\"][:]'`";

/// A message with the names of the file and of a new one in its place.
fn named(text: &str, path: &Path) -> String {
    let out = path.with_extension("h5");
    let out = if out == path { path.with_extension("new.h5") } else { out };
    text.replace("{in}", &path.display().to_string()).replace("{out}", &out.display().to_string())
}

/// What a file that cannot be read here begins like.
fn other_kind(start: &[u8], path: &Path) -> Option<&'static str> {
    let head = start.trim_ascii_start();
    // The name of the first file of a zip archive stands behind 30 bytes.
    let holds = |text: &[u8]| start.windows(text.len()).any(|bytes| bytes == text);
    if start.starts_with(b"PK\x03\x04") && holds(b".npy") {
        return Some(NPZ);
    }
    let torch =
        path.extension().is_some_and(|e| ["pt", "pth", "bin"].iter().any(|t| e.eq_ignore_ascii_case(t)));
    if torch && start.starts_with(b"\x80") {
        return Some(TORCH);
    }
    if start.starts_with(b"PK\x03\x04") && (holds(b"data.pkl") || holds(b"/byteorder") || holds(b"/version"))
    {
        return Some(TORCH);
    }
    let known = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, kind)| *kind);
    let text =
        path.extension().is_some_and(|e| ["csv", "tsv", "txt"].iter().any(|t| e.eq_ignore_ascii_case(t)));
    let printable = start.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    known.or((text || printable && (holds(b",") || holds(b"\t"))).then_some(TABLE))
}

/// Whether a folder is an array or group of Zarr.
pub(super) fn is_zarr(folder: &Path) -> bool {
    [".zgroup", ".zarray", "zarr.json"].iter().any(|name| folder.join(name).exists())
}

/// The format of `file` by its first bytes; an error for what is none that is read.
pub(super) fn format(path: &Path, file: &std::fs::File, meta: &Metadata) -> Result<Format> {
    let wrong = |what: String| Err(Error::data(path, "", what));
    if meta.is_dir() {
        if is_zarr(path) {
            return wrong(named(ZARR, path));
        }
        return wrong("is a folder; name a file in it".into());
    }
    if !meta.is_file() {
        return wrong("is not a regular file; copy the data to one first".into());
    }
    if meta.len() == 0 {
        return wrong("is empty (0 bytes); download or copy it again".into());
    }
    let mut start = [0u8; 128];
    // A user block of 512, 1024, 2048, ... bytes may precede the signature.
    let mut at = 0u64;
    while at < meta.len() {
        let mut found = [0u8; 8];
        if file.read_exact_at(&mut found, at).is_ok() && found == SIGNATURE {
            return Ok(Format::Hdf5);
        }
        at = if at == 0 { 512 } else { at.saturating_mul(2) };
    }
    let n = file.read_at(&mut start, 0).map_err(Error::io(path, "read"))?;
    let head = start[..n].trim_ascii_start();
    #[cfg(feature = "parquet")]
    if start.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    if start.starts_with(b"\x93NUMPY") {
        return Ok(Format::Npy);
    }
    // The length of a header of JSON, and its first character.
    if start[..n].get(8) == Some(&b'{') && start[4..8] == [0; 4] {
        return Ok(Format::Safetensors);
    }
    if head.len() < 8 && SIGNATURE.starts_with(&start[..n.min(8)]) {
        return wrong(format!("the file is cut short at {n} bytes; download or copy it again"));
    }
    if start[..n].iter().all(|&byte| byte == 0) {
        return wrong("holds zeros only; the copy went wrong, download or copy it again".into());
    }
    if let Some(kind) = other_kind(&start[..n], path) {
        return wrong(format!("is not HDF5, .npy or .safetensors but looks like {}", named(kind, path)));
    }
    wrong("is neither HDF5, .npy nor .safetensors; give a file of embeddings in one of these".into())
}

/// Whether a file begins as the first member of a family: the driver's name stands after the superblock.
pub(super) fn is_member_of_family(file: &std::fs::File) -> bool {
    let mut start = [0u8; 2048];
    let n = file.read_at(&mut start, 0).unwrap_or(0);
    start[..n].windows(8).any(|bytes| bytes == b"NCSAfami")
}
